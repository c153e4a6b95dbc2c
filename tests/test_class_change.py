import numpy as np
import pytest
from PIL import Image
from predicted import predict, random_predictions

from timm_dad.evaluation.report.class_change import class_accuracy, display_names, plot_class_change

pytest.importorskip('matplotlib')


def test_accuracy_of_each_class_that_occurs():
    one, two = predict([1, 0, 1, 1, 0, 0], classes=3), predict([1, 1, 1, 1, 1, 0], classes=3)
    for predictions in (one, two):
        predictions.label[predictions.label == 1] = 7
    classes, accuracy = class_accuracy([one, two])
    assert classes.tolist() == [0, 2, 7]
    np.testing.assert_allclose(accuracy, [[100, 50, 0], [100, 50, 100]])


def test_other_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match='change by class is of predictions of the same images'):
        plot_class_change(predict([1, 0]), predict([1, 0], classes=1), tmp_path / 'x.png', ('a', 'b'), 'noto')


def test_names_of_classes():
    assert display_names(None, [3]) == ['class 3']
    assert display_names(['n01440764', 'a dog', 'x' * 50], [0, 1, 2]) == ['tench', 'a dog', 'x' * 33 + '…']


@pytest.mark.parametrize('classes', [1, 12, 60])
def test_picture(tmp_path, classes):
    predictions = [random_predictions(seed, 300, classes=classes) for seed in (0, 1)]
    names = [f'$odd_{index}^' for index in range(classes)]
    paths = [
        plot_class_change(*predictions, tmp_path / f'{place}.png', ('a', 'b$_'), 'noto', names) for place in range(2)
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    other = plot_class_change(*predictions[::-1], tmp_path / 'other.png', ('a', 'b$_'), 'noto', names)
    assert other.read_bytes() != paths[0].read_bytes()
    with Image.open(paths[0]) as picture:
        assert picture.format == 'PNG'
        assert 'Software' not in picture.info
    assert {path.name for path in tmp_path.iterdir()} == {'0.png', '1.png', 'other.png'}
