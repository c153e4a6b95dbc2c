"""Fill a repository of the Hugging Face Hub with a folder."""

from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, get_token, hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError

from timm_dad.common.hub import hub_errors
from timm_dad.common.version import __version__

_OF_THE_HUB = ('.gitattributes', 'README.md')


class Repository:
    """A repository to fill; its content is requested from the hub.

    Args:
        name: ``USER/NAME``.
        kind: ``dataset`` or ``model``, as the hub calls it.
        private: Whether to make it private.

    Raises:
        ValueError: If there is no token or no connection to the hub, or it exists and ``private`` would be ignored.
    """

    def __init__(self, name: str, kind: str, private: bool = False) -> None:
        self.name, self.kind, self.private = name, kind, private
        self.api = HfApi(library_name='timm_dad', library_version=__version__)
        if get_token() is None:
            raise ValueError(
                f'--repo {name}: there is no token for writing to the hub: log in with hf auth login, or set HF_TOKEN'
            )
        self.files = self._list_files()
        if private and self.files is not None:
            raise ValueError(f'--private is for a new repository, but {name} exists: leave it out')

    def _list_files(self) -> list[str] | None:
        """List its files; return ``None`` if there is no such repository, or this token may not see it."""
        with hub_errors(f'--repo {self.name}'):
            try:
                return list(self.api.list_repo_files(self.name, repo_type=self.kind))
            except RepositoryNotFoundError:
                return None

    def check_same(self, path: str, file: Path) -> None:
        """Raise ``ValueError`` if it contains another file of this name, which identifies a set."""
        if path not in (self.files or ()):
            return
        with hub_errors(f'--repo {self.name}'):
            there = Path(hf_hub_download(self.name, path, repo_type=self.kind)).read_bytes()
        if there != file.read_bytes():
            raise ValueError(f'--repo {self.name} contains another set ({path} differs): choose another repository')

    def upload(self, folder: Path, last: str | None = None) -> str:
        """Upload a folder with one file ``last``, which marks the repository as complete; return the address.

        Raises:
            ValueError: If it contains other files, or the hub refuses.
        """
        own = {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}
        strangers = sorted(set(self.files or ()) - own - set(_OF_THE_HUB))[:3]
        if strangers:
            raise ValueError(
                f'--repo {self.name} contains other files ({", ".join(strangers)}): choose another one, or empty it'
            )
        with hub_errors(f'--repo {self.name}'):
            url = self.api.create_repo(self.name, repo_type=self.kind, private=self.private or None, exist_ok=True)
            upload = partial(self.api.upload_folder, repo_id=self.name, repo_type=self.kind, folder_path=folder)
            upload(ignore_patterns=[last] if last else None, commit_message='timm-dad push')
            if last:
                upload(allow_patterns=[last], commit_message=f'timm-dad push: {last}')
        return str(url)
