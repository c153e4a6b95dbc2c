"""Where the weights of a VQGAN come from."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The file that weights were read from, and the licence that its source states for them."""

    sha256: str
    licence: str = ''  # none is known of a file of one's own

    def describe(self, digits: int = 64) -> str:
        """Format it, with this many digits of the hash."""
        licence = f'licence {self.licence}, ' if self.licence else ''
        return f'{licence}SHA-256 {self.sha256[:digits]}'
