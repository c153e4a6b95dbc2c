"""VQGANs on the Hugging Face Hub, ``hf://USER/NAME[@REVISION][/PATH]``: diffusers or LlamaGen folders, and files."""

from pathlib import Path

from huggingface_hub import ModelCard, snapshot_download

from timm_dad.common.hub import SCHEME, hub_errors, split_revision

_FOLDER_FILES = ('config.json', 'diffusion_pytorch_model.safetensors', 'model.safetensors')
_FILES = ('.ckpt', '.pth', '.pt', '.safetensors')
_FORM = f'{SCHEME}USER/NAME[@REVISION][/FOLDER or /FILE]'


def fetch_from_hub(address: str) -> tuple[Path, str]:
    """Fetch what an address names into the hub's cache, unless it is there, without the rest of its repository.

    Returns:
        Path of the folder or file, and the licence that the repository's card states.

    Raises:
        ValueError: If the address is malformed, or is neither cached nor available; the message says what to do.
        FileNotFoundError: If the repository has no such folder or file.
    """
    user, _, rest = address.removeprefix(SCHEME).partition('/')
    name, _, inside = rest.partition('/')
    repo, revision = split_revision(f'{user}/{name}', _FORM, address)
    inside = inside.strip('/')
    if '..' in Path(inside).parts:
        raise ValueError(f'a VQGAN on the hub is {_FORM}, got {address!r}')
    is_file = inside.endswith(_FILES)
    if is_file:
        files = [inside, str(Path(inside).with_suffix('.yaml')), str(Path(inside).with_name('config.yaml'))]
    else:
        files = [str(Path(inside) / name) for name in _FOLDER_FILES]
    with hub_errors(address):
        root = Path(snapshot_download(repo, revision=revision, allow_patterns=[*files, 'README.md']))
    path = root / inside
    if not (path.is_file() if is_file else (path / 'config.json').is_file()):
        raise FileNotFoundError(
            f'no VQGAN at {address}: the repository has no {files[0]}; name the folder of its VQModel, or a checkpoint '
            f'in it: {_FORM}'
        )
    return path, _licence(root / 'README.md')


def _licence(card: Path) -> str:
    if not card.is_file():
        return 'not stated'
    data = ModelCard(card.read_text(encoding='utf-8', errors='replace'), ignore_metadata_errors=True).data.to_dict()
    return str(data.get('license_name') or data.get('license') or 'not stated')
