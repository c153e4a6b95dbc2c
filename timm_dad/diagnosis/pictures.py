"""The images that say most of what limits a student: where it is most confidently wrong, or leaves its teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from timm_dad.common.html_report import ShownPicture, picture_name
from timm_dad.diagnosis.data import CLEAN, DAD, RECONSTRUCTED
from timm_dad.preview.sheet import percent, to_picture

PICTURES = 4  # of a set of images


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """An image that is shown, its views ``[3, H, W]`` in [0, 1] by name, on the CPU."""

    views: dict[str, Tensor]
    label: str
    answers: dict[str, tuple[str, float]]  # class and probability, by model
    file: str
    confidence: float  # of the answer that it is kept for


class WorstImages:
    """Keeps some images of clean, DAD and OOD data while these are measured.

    Of clean and OOD images it keeps those that the student (without one, the teacher) is most confidently wrong on, and
    of DAD views those on which it is most sure of another class than the teacher's, whoever is right; of equal ones the
    first.

    Args:
        class_names: Names of all classes, for readers.
        count: Images of a set.
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
        """Look at a batch of clean images and their views ``[B, 3, H, W]``, by name, as are the logits by model."""
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
        """Look at a batch of the set ``name``.

        Args:
            name: The set of images.
            views: What is shown of each image, side by side, ``[B, 3, H, W]`` in [0, 1], by name.
            label: Labels ``[B]``, among the ``classes``.
            logits: By model (``teacher``, ``student``) ``[B, K]``, on the CPU.
            files: Names of the images.
            classes: The class of each logit; all by default.
            right: What answers are held against ``[B]``; the labels by default.
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
        """The pictures of every set, and what the models say of them."""
        return {name: [_show(one) for one in kept] for name, kept in self._kept.items()}


def _show(kept: _Kept) -> ShownPicture:
    said = [f'{role}: {name}, {percent(probability)}' for role, (name, probability) in sorted(kept.answers.items())]
    lines = [*said, f'true: {kept.label}', picture_name(kept.file)]
    if len(kept.views) > 1:
        lines.append(f'from the left: {", ".join(kept.views)}')
    views = {f'{view}: {kept.label}': to_picture(image) for view, image in kept.views.items()}
    return ShownPicture(views=views, lines=lines)
