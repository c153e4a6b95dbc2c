"""``python -m timm_dad`` is ``timm-dad``."""

from timm_dad.cli import main

if __name__ == '__main__':
    main()
