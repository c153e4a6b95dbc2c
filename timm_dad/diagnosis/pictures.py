"""The images that show best what limits a student: most confidently wrong, or in disagreement with its teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from timm_dad.common.html_report import ShownPicture, picture_name
from timm_dad.diagnosis.data import CLEAN, DAD, RECONSTRUCTED
from timm_dad.preview.sheet import percent, to_picture

PICTURES = 4  # per set of images


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """An image to show, with its views ``[3, H, W]`` in [0, 1] by name, on the CPU."""

    views: dict[str, Tensor]
    label: str
    answers: dict[str, tuple[str, float]]  # class and probability, by model
    file: str
    confidence: float  # of the answer that it is kept for


class WorstImages:
    """Images of clean, DAD and OOD data, kept during the measurement in order to show them.

    Clean and OOD images are kept if the student (without one, the teacher) is most confidently wrong on them. DAD views
    are kept if it most confidently disagrees with the teacher, whichever of the two is right. Ties go to the first.

    Args:
        class_names: Names of all classes, for readers.
        count: Images to keep per set.
    """

    def __init__(self, class_names: Sequence[str], count: int = PICTURES) -> None:
        self.class_names, self.count = class_names, count
        self._kept: dict[str, list[_Kept]] = {}

    def add_views(
        self,
        views: Mapping[str, Tensor],
        label: Tensor,
        logits: Mapping[str, Mapping[str, Tensor]],
        files: Sequence[str],
    ) -> None:
        """Add a batch of clean images and their views ``[B, 3, H, W]``, by name, with the logits by name and model."""
        self.add(CLEAN, {CLEAN: views[CLEAN]}, label, logits[CLEAN], files)
        path = {name: views[name] for name in (CLEAN, RECONSTRUCTED, DAD) if name in views}
        follows = 'student' in logits[DAD]
        right = logits[DAD]['teacher'].argmax(dim=-1) if follows else label
        self.add(DAD, path, label, logits[DAD], files, right=right)

    def add(
        self,
        name: str,
        views: Mapping[str, Tensor],
        label: Tensor,
        logits: Mapping[str, Tensor],
        files: Sequence[str],
        *,
        classes: Sequence[int] | None = None,
        right: Tensor | None = None,
    ) -> None:
        """Add a batch of the set ``name``.

        Args:
            name: The set of images.
            views: Views of each image to show side by side, ``[B, 3, H, W]`` in [0, 1], by name.
            label: Labels ``[B]``, among the ``classes``.
            logits: By model (``teacher``, ``student``) ``[B, K]``, on the CPU.
            files: Names of the images.
            classes: The class of each logit; all by default.
            right: Classes ``[B]`` that count as right; the labels by default.
        """
        said = {role: of_role.softmax(dim=-1).max(dim=-1) for role, of_role in logits.items()}
        confidence, predicted = said['student' if 'student' in said else 'teacher']
        wrong = (predicted != (label if right is None else right).cpu()).nonzero().flatten()
        names = self.class_names if classes is None else [self.class_names[label] for label in classes]
        kept = self._kept.setdefault(name, [])
        for place in wrong[confidence[wrong].argsort(descending=True, stable=True)][: self.count].tolist():
            answers = {role: (names[int(of.indices[place])], float(of.values[place])) for role, of in said.items()}
            images = {view: of_view[place].cpu() for view, of_view in views.items()}
            is_of = names[int(label[place])]
            kept.append(
                _Kept(
                    views=images, label=is_of, answers=answers, file=files[place], confidence=float(confidence[place])
                )
            )
        kept.sort(key=lambda one: -one.confidence)
        del kept[self.count :]

    def shown(self) -> dict[str, list[ShownPicture]]:
        """Return the pictures of every set, with the answers of the models."""
        return {name: [_show(one) for one in kept] for name, kept in self._kept.items()}


def _show(kept: _Kept) -> ShownPicture:
    said = [f'{role}: {name}, {percent(probability)}' for role, (name, probability) in sorted(kept.answers.items())]
    lines = [*said, f'true: {kept.label}', picture_name(kept.file)]
    if len(kept.views) > 1:
        lines.append(f'from the left: {", ".join(kept.views)}')
    views = {f'{view}: {kept.label}': to_picture(image) for view, image in kept.views.items()}
    return ShownPicture(views=views, lines=lines)
