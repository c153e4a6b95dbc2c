"""The card of a DAD set: ``README.md`` with the front matter of the Hugging Face Hub."""

from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import DatasetCardData

from timm_dad.common.markdown import format_table
from timm_dad.dad_sets.read import DADSet

PAPER = '[Discrete Adversarial Distillation](https://arxiv.org/abs/2311.01441) (Zhou et al. 2023)'
# The hub's names of numbers of examples, from up to three digits on, one a digit.
_SIZES = (
    'n<1K', '1K<n<10K', '10K<n<100K', '100K<n<1M', '1M<n<10M', '10M<n<100M', '100M<n<1B', '1B<n<10B', '10B<n<100B',
    '100B<n<1T', 'n>1T',
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a card states beyond the set itself.

    Args:
        repo: ``USER/NAME`` on the hub.
        license: The hub's identifier of the repository's licence.
        data_licenses: Licences of the pictures, as the user states them.
        teacher: SPEC of the teacher.
        vqgan: SPEC of the VQGAN.
        made_by: The command line that made the set.
        trained_by: A command line that trains from it.
    """

    repo: str
    license: str
    data_licenses: Sequence[str]
    teacher: str
    vqgan: str
    made_by: str
    trained_by: str


def front_matter(data: object) -> str:
    """Return the YAML block at the top of a card, from the hub's own card data."""
    return f'---\n{data}\n---\n'


def set_card(dad_set: DADSet, told: Provenance, num_bytes: int) -> str:
    """Return the card of a finished set whose files total ``num_bytes``."""
    views = dad_set.num_images * dad_set.num_views
    data = DatasetCardData(
        license=told.license,
        task_categories=['image-classification'],
        size_categories=size_category(views),
        pretty_name=told.repo.split('/')[-1],
        tags=['timm-dad', 'knowledge-distillation', 'adversarial-examples', 'robustness'],
    )
    return f"""{front_matter(data)}
# {told.repo.split('/')[-1]}

{views:,} DAD views of {dad_set.num_images:,} images, made once by `timm-dad generate` for trainings with {PAPER}.
It does not contain the images, except those that `contact_sheet.png` shows beside their views: a view belongs to an
image of the data set by its index and name, and a training checks that data and set match before it begins.

{format_table([('What', 'Value'), *_rows(dad_set, told, num_bytes)], text_columns=2)}

Every view has its hash in `manifest/`; `timm-dad verify hf://{told.repo}` compares all bytes.

## Train from it

```bash
{told.trained_by}
```

The model is an example; `DIR`, if present, is the data that the views were made from, and `class_map.txt` is a file of
this repository.

## How it was made

```bash
{told.made_by}
```

## Licences

This repository: {told.license}. The pictures that the views were made from: {', '.join(told.data_licenses)}.
"""


def _rows(dad_set: DADSet, told: Provenance, num_bytes: int) -> list[tuple[str, str]]:
    settings, summary = dad_set.settings, dad_set.index['summary']
    data, attack = settings['data'], dict(settings['attack'])
    (height, width), logits = dad_set.size, settings['logits']
    kept = sorted(summary['kept_by_class'].items(), key=lambda entry: entry[1])
    least = f', least for {kept[0][0]}: {kept[0][1]:.1%}' if kept else ''
    stored = [('teacher logits stored', f'{logits["top_k"]} an image and view')] if logits else []
    return [
        ('data', f'{data["dataset"] or "an image folder"}, split `{data["split"]}`, {data["num_classes"]} classes'),
        ('images', f'{dad_set.num_images:,}'),
        ('views of each', str(dad_set.num_views)),
        ('size', f'{height} x {width}'),
        ('format', ', '.join(map(str, settings['files'].values()))),
        ('bytes', f'{num_bytes:,} in all, {summary["bytes_per_view"]:,.0f} a view'),
        ('teacher', f'`{told.teacher}`, fingerprint `{settings["teacher"]["fingerprint"][:16]}`'),
        ('VQGAN', f'`{told.vqgan}`, fingerprint `{settings["vqgan"]["fingerprint"][:16]}`'),
        ('attack', ', '.join(f'{name} {value}' for name, value in attack.items())),
        ('precision', settings['precision']),
        *stored,
        (
            'teacher keeps the label' if dad_set.one_class else 'teacher keeps its answer',
            f'{summary["teacher_kept"]:.1%}{least}',
        ),
        ('mean L2 of view and image', f'{summary["l2"]:.3f}, over [3, H, W] in [0, 1]'),
        ('codes of the VQGAN used', f'{summary["codebook_used"]:.1%}'),
    ]


def size_category(count: int) -> str:
    """Return the hub's name for a range of example counts."""
    return _SIZES[min(max(0, len(str(count)) - 3), len(_SIZES) - 1)]
