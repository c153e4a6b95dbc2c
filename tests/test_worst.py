"""The pictures that models get most confidently wrong."""

import numpy as np
import pytest
from PIL import Image
from predicted import predict

from timm_dad.data.images import Frame
from timm_dad.evaluation.predict import Predictions, part_images
from timm_dad.evaluation.report.worst import MAX_PICTURES, PICTURES, find_mistakes, worst_pictures
from timm_dad.evaluation.suites.changed import corrupted_suites
from timm_dad.evaluation.suites.suite import Part, Suite

FRAME = Frame(size=(32, 32))


class Colours:
    """Pictures of one colour each, of 5 classes; the last one does not decode."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index == 11:
            raise ValueError('c/11.png does not decode')
        return Image.new('RGB', (40, 40), (20 * index, 0, 0)), index % 5

    def filename(self, index):
        return f'c/{index}.png'


def suite_of(*names, classes=('a', 'b', 'c', 'd', 'e'), **more):
    data = Colours()
    parts = tuple(Part(name=name, dataset=data, **more) for name in names)
    return Suite(name='mine', kind='ood', parts=parts, class_names=classes, num_classes=5)


def wrong_at(confidence):
    """Wrong where there is a confidence, of 12 pictures."""
    at = np.array([confidence.get(index, 0.0) for index in range(12)])
    return predict(at == 0, confidence=at)


def found(suite, of_parts, count=3):
    return [(one.part.name, one.index, round(one.confidence, 2)) for one in find_mistakes(suite, of_parts, count)]


def test_the_most_confident_mistakes_come_first_and_of_equal_ones_the_first():
    of_parts = {'test': wrong_at({1: 0.5, 3: 0.9, 4: 0.7, 7: 0.9, 8: 0.9})}
    assert found(suite_of('test'), of_parts, 4) == [('test', i, c) for i, c in ((3, 0.9), (7, 0.9), (8, 0.9), (4, 0.7))]
    assert found(suite_of('test'), {'test': predict([True] * 12)}) == []


def test_a_picture_is_shown_once_where_the_model_is_most_confident():
    of_parts = {'fog/1': wrong_at({1: 0.5, 2: 0.6, 3: 0.4}), 'fog/5': wrong_at({1: 0.9, 2: 0.6, 4: 0.3})}
    assert found(suite_of('fog/1', 'fog/5'), of_parts) == [('fog/5', 1, 0.9), ('fog/1', 2, 0.6), ('fog/1', 3, 0.4)]


def shown(suite, predictions, seed=0, models=('m',)):
    results = {model: {suite.name: {part.name: predictions for part in suite.parts}} for model in models}
    return worst_pictures(results, [suite], dict.fromkeys(models, FRAME), seed)[suite.name]


def test_what_is_said_of_a_picture():
    (one,) = shown(suite_of('test'), wrong_at({6: 0.987}))['m']
    assert one.lines == ('predicted: c, 98.7 %', 'true: b', 'c/6.png')
    assert list(one.views) == ['b, taken for c']
    (one,) = shown(suite_of('v1', 'v2'), wrong_at({6: 0.987}))['m']
    assert one.lines[-1] == 'v1: c/6.png'


def test_several_labels_no_class_of_the_suite_and_classes_of_one_name():
    label = np.full(12, 1)
    nothing = Predictions(
        label=label, predicted=label * 0 - 1, confidence=np.float32(label), correct=label == 0, correct5=label == 0
    )
    words = ('n02012849', 'n03126707', 'b', 'c', 'd')  # two cranes
    (one, *_) = shown(suite_of('test', classes=words, multi_labels=[[0, 2]] * 12), nothing)['m']
    assert one.lines[:2] == ('predicted: none of these classes, 100.0 %', 'true: crane (n02012849), b')


def test_pictures_are_those_that_the_model_got():
    (made,) = corrupted_suites(suite_of('test'), ['gaussian_noise'], [3])
    for seed in (0, 1):
        (one,) = shown(made, wrong_at({6: 0.9}), seed)['m']
        (picture,) = one.views.values()
        expected = part_images(FRAME, made, made.parts[0], seed)[6].pixels
        assert np.array_equal(np.asarray(picture), expected.permute(1, 2, 0))


def test_a_picture_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match=r'c/11\.png does not decode'):
        shown(suite_of('test'), wrong_at({11: 0.9}))


@pytest.mark.parametrize(('models', 'each'), [(1, PICTURES), (MAX_PICTURES // 3, 3), (2 * MAX_PICTURES, 1)])
def test_there_are_so_many_pictures_and_no_more(models, each):
    of_models = shown(suite_of('test'), wrong_at(dict.fromkeys(range(8), 0.5)), models=range(models))
    assert {len(of_model) for of_model in of_models.values()} == {each}
