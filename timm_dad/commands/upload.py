"""A repository of the Hugging Face Hub that is filled with a folder."""

from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, get_token, hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError

from timm_dad.common.hub import hub_errors
from timm_dad.common.version import __version__

_OF_THE_HUB = ('.gitattributes', 'README.md')


class Repository:
    """A repository to be filled; the hub is asked what it holds.

    Args:
        name: ``USER/NAME``.
        kind: ``dataset`` or ``model``, as the hub calls it.
        private: Make it a private one.

    Raises:
        ValueError: If there is no token or no way to the hub, or it is there and ``private`` would be ignored.
    """

    def __init__(self, name: str, kind: str, private: bool = False) -> None:
        self.name, self.kind, self.private = name, kind, private
        self.api = HfApi(library_name='timm_dad', library_version=__version__)
        if get_token() is None:
            raise ValueError(
                f'--repo {name}: there is no token to write to the hub with: log in with hf auth login, or set HF_TOKEN'
            )
        self.files = self._list_files()
        if private and self.files is not None:
            raise ValueError(f'--private is for a repository that is made, and {name} is there: leave it out')

    def _list_files(self) -> list[str] | None:
        """Files that it holds; ``None`` if there is no such repository, or none that this token may see."""
        with hub_errors(f'--repo {self.name}'):
            try:
                return list(self.api.list_repo_files(self.name, repo_type=self.kind))
            except RepositoryNotFoundError:
                return None

    def check_same(self, path: str, file: Path) -> None:
        """Raise ``ValueError`` if it holds another file of this name, by which a set is known."""
        if path not in (self.files or ()):
            return
        with hub_errors(f'--repo {self.name}'):
            there = Path(hf_hub_download(self.name, path, repo_type=self.kind)).read_bytes()
        if there != file.read_bytes():
            raise ValueError(f'--repo {self.name} holds another set ({path} differs): name another repository')

    def upload(self, folder: Path, last: str | None = None) -> str:
        """Upload a folder, one file of it ``last``, without which what is there is not whole; returns the address.

        Raises:
            ValueError: If it holds other files, or the hub says no.
        """
        own = {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}
        strangers = sorted(set(self.files or ()) - own - set(_OF_THE_HUB))[:3]
        if strangers:
            raise ValueError(
                f'--repo {self.name} holds other files ({", ".join(strangers)}): name another repository, or empty it'
            )
        with hub_errors(f'--repo {self.name}'):
            url = self.api.create_repo(self.name, repo_type=self.kind, private=self.private or None, exist_ok=True)
            upload = partial(self.api.upload_folder, repo_id=self.name, repo_type=self.kind, folder_path=folder)
            upload(ignore_patterns=[last] if last else None, commit_message='timm-dad push')
            if last:
                upload(allow_patterns=[last], commit_message=f'timm-dad push: {last}')
        return str(url)
