"""The student of a training in timm's own layout, with its model card."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import ModelCardData
from timm.data import resolve_data_config
from timm.models import save_for_hf
from torch import nn

from timm_dad.common.markdown import format_table
from timm_dad.common.timm_version import NEW_TIMM, needs_new_timm
from timm_dad.common.torch_files import read_checkpoint
from timm_dad.dad_sets.card import PAPER, front_matter
from timm_dad.flags.moved import without_folder
from timm_dad.flags.rules import flag_errors
from timm_dad.flags.runs import trained_classes
from timm_dad.teachers.backbones import load_timm
from timm_dad.teachers.trained import AVERAGED, find_run, model_kwargs, read_flags, run_folder

CARD, CONFIG, WEIGHTS = 'README.md', 'config.json', 'model.safetensors'
_logger = logging.getLogger(__name__)


class Student:
    """The result of a training; warns if its class names are unknown.

    Args:
        run: The folder of the run, whose best checkpoint is used, or a checkpoint in it.
        use_ema: Use the moving average of the weights, if there is one.

    Raises:
        ValueError: If there is none, or its weights do not fit.
    """

    def __init__(self, run: str, *, use_ema: bool = True) -> None:
        name, self.checkpoint = find_run(run)
        self.flags = read_flags(run_folder(run) / 'args.yaml')
        self.use_ema = use_ema
        self.model = load_timm(name, self.checkpoint, self.flags.get('num_classes'), use_ema=use_ema).eval()
        self.class_names = trained_classes(self.flags)
        if self.class_names is not None and len(self.class_names) != self.model.num_classes:
            self.class_names = None  # the folder holds other data now
        if self.class_names is None:
            _logger.warning(
                '%s: the model gets no class names, because its training data is not here, or does not '
                'name them', run,
            )  # fmt: skip

    @property
    def name(self) -> str:
        """Name of the model in timm, without folders of this machine."""
        return str(without_folder(self.flags['model']))

    @property
    def images(self) -> dict[str, Any]:
        """The image format, as arguments of ``timm.data.create_transform``."""
        return dict(resolve_data_config({}, model=self.model))

    @torch.no_grad()
    def write(self, folder: Path, license: str = '') -> nn.Module:
        """Write configuration and weights, and compare the logits of the model that timm loads from them.

        Returns:
            The model that timm loads.

        Raises:
            ValueError: If timm does not load them, gets other logits, or is too old to read size and normalization.
        """
        if not NEW_TIMM:  # its config.json would not tell size and normalization
            raise ValueError(needs_new_timm('the model of a run in the layout of timm'))
        # Tag and licence of the weights that the training began with are not those of what it made of them.
        config: dict[str, Any] = {'pretrained_cfg': {'tag': '', 'license': license}}
        if self.class_names:
            config['label_names'] = self.class_names
        with flag_errors(f'{self.checkpoint} in the layout of timm'):
            save_for_hf(
                self.model,
                str(folder),
                model_config=config,
                model_args=model_kwargs(self.flags),
                safe_serialization=True,
            )
            loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        x = torch.rand(2, *self.model.pretrained_cfg['input_size'], generator=torch.Generator().manual_seed(0))
        if not torch.equal(loaded(x), self.model(x)):
            raise ValueError(
                f'{self.checkpoint}: timm.create_model builds a network with other logits from {CONFIG} and {WEIGHTS}: '
                f'{self.flags["model"]} with {model_kwargs(self.flags)} is not described by them'
            )
        return loaded  # type: ignore[no-any-return]

    def card(
        self,
        title: str,
        use: str,
        *,
        library: str | None = None,
        rows: Sequence[tuple[str, str]] = (),
        licenses: tuple[str, Sequence[str]] | None = None,
    ) -> str:
        """Return the model card.

        Args:
            title: Its heading.
            use: Lines of Python that classify pictures.
            library: The hub's name of the library they use.
            rows: Additional rows, after those about the training.
            licenses: That of the repository, by the hub's identifier, and those of the pictures.
        """
        data = ModelCardData(
            license=licenses[0] if licenses else None,
            library_name=library,
            pipeline_tag='image-classification',
            tags=[
                'timm',
                'timm-dad',
                'image-classification',
                *(['knowledge-distillation'] if self.flags.get('dad') else []),
            ],
        )
        return f"""{front_matter(data)}
# {title}

{self.name} of timm, trained {_how(self.flags)}.

{format_table([('What', 'Value'), *self._rows(), *rows], text_columns=2)}

## Use

```python
{use}```
{_licences(licenses)}"""

    def _rows(self) -> list[tuple[str, str]]:
        cfg, flags = self.model.pretrained_cfg, self.flags
        size, (mean, std) = cfg['input_size'], (', '.join(f'{v:.4g}' for v in cfg[name]) for name in ('mean', 'std'))
        millions = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        data = flags.get('dataset') or Path(str(flags.get('data_dir') or flags.get('data') or 'a folder')).name
        how = [f'{name} {flags[name]}' for name in ('epochs', 'batch_size', 'opt', 'lr') if flags.get(name) is not None]
        return [
            ('parameters', f'{millions:.3g} M'),
            (
                'images',
                f'{size[1]} x {size[2]}, mean {mean}, std {std}, {cfg["interpolation"]}, crop {cfg["crop_pct"]:g}',
            ),
            ('classes', str(self.model.num_classes)),
            ('data', f'{data}, split `{flags.get("train_split", "train")}`'),
            ('training', ', '.join(how)),
            *(_dad_rows(flags) if flags.get('dad') else []),
            *_metric_rows(self.checkpoint, flags, self.use_ema),
        ]


def timm_use(address: str) -> str:
    """Return lines of Python that classify a picture with a model that timm finds at an address."""
    return f"""import timm

model = timm.create_model('{address}', pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)  # PIL image -> [3, H, W]
logits = model(transform(image)[None])  # [1, K]; the classes are model.pretrained_cfg['label_names']
"""


def _licences(licenses: tuple[str, Sequence[str]] | None) -> str:
    if licenses is None:
        return ''
    own, of_data = licenses
    return f"""
## Licences

This repository: {own}. The pictures of the training: {', '.join(of_data)}.
"""


def _how(flags: Mapping[str, Any]) -> str:
    if not flags.get('dad'):
        return 'without DAD'
    return 'with distillation on two random views, without DAD views' if _is_random(flags) else f'with {PAPER}'


def _is_random(flags: Mapping[str, Any]) -> bool:
    return bool(flags.get('dad_view') == 'random')


def _dad_rows(flags: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = partial(_given, flags)
    attack = names('dad_attack', 'dad_norm', 'dad_eps', 'dad_step_size', 'dad_num_steps', 'dad_random_start')
    if _is_random(flags):
        made = [('second view', 'random')]
    elif flags.get('dad_dir'):
        made = [('DAD views', f'`{without_folder(flags["dad_dir"])}`')]
    else:
        made = [('VQGAN', f'`{without_folder(flags.get("dad_vqgan"))}`'), ('attack', attack)]
    features = ['dad_feature_weight'] if flags.get('dad_feature_weight') else []
    return [
        ('teacher', f'`{without_folder(flags.get("dad_teacher"))}`'),
        *made,
        ('loss', names('dad_task_weight', 'dad_kd_weight', 'dad_weight', 'dad_temperature', *features)),
    ]


def _given(flags: Mapping[str, Any], *names: str) -> str:
    told = {name.removeprefix('dad_'): flags[name] for name in names if flags.get(name) is not None}
    return ', '.join(f'{name} {value}' for name, value in told.items())


def _metric_rows(checkpoint: str, flags: Mapping[str, Any], use_ema: bool) -> list[tuple[str, str]]:
    """Return the validation result in the checkpoint, which is the moving average's if there is one."""
    content = read_checkpoint(checkpoint, mmap=True) if not checkpoint.endswith('.safetensors') else {}
    of_others = not use_ema and any(name in content for name in AVERAGED)
    if content.get('metric') is None or of_others:
        return []
    split = flags.get('val_split', 'validation')
    what = f'{flags.get("eval_metric", "metric")} on `{split}`'
    return [(what, f'{content["metric"]:.4g}, epoch {content.get("epoch")}')]
