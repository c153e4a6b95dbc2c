import json
import sys

import pytest
import timm
from timm.data import ImageNetInfo

from timm_dad.teachers.classes import in_label_order, match_classes, read_class_file, resolve_classes, timm_labels

WNIDS = list(ImageNetInfo().label_names())


@pytest.mark.parametrize(
    ('name', 'text', 'expected'),
    [
        ('a.txt', 'dog\n\n red car \n', ['dog', 'red car']),
        ('a.txt', '\ufeffdog\ncaf\u00e9\n', ['dog', 'caf\u00e9']),
        ('a.json', '["dog", "red car"]', ['dog', 'red car']),
        ('a.json', '[3, 1]', ['3', '1']),
        ('a.json', '{"d": "dog", "c": "red car"}', {'d': 'dog', 'c': 'red car'}),
        ('a.csv', 'name\ndog\n"car, red"\n', ['dog', 'car, red']),
        ('a.csv', 'name,class\ndog,d\nred car,c\n', {'d': 'dog', 'c': 'red car'}),
    ],
)
def test_every_format_is_read(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text, encoding='utf-8')
    assert read_class_file(tmp_path / name, 'name') == expected


@pytest.mark.parametrize(
    ('name', 'content', 'match'),
    [
        ('a.txt', b'\n\n', 'is empty; give one name per class'),
        ('a.json', b'[]', 'is empty'),
        ('a.json', b'{"a": ', 'line 1, column 7: not valid JSON: Expecting value'),
        ('a.json', b'[' * 100_000, 'not valid JSON: nested too deeply'),
        ('a.json', b'"dog"', 'must be a list of names, or a map from class folder to name'),
        ('a.json', b'[["n01440764", "tench"]]', 'must be a list of names'),
        ('a.json', b'[true]', 'must be a list of names'),
        ('a.csv', b'dog\ncat\n', r"header must have a column 'name' .* got \['dog'\]"),
        ('a.csv', b'class,name\nd,dog\nd,cat\n', 'repeats a class'),
        ('a.csv', b'class,name\nd,dog\nc,\n', 'row 2 has no name'),
        ('a.csv', b'class,name\nd,dog\nc\n', 'row 2 has no name'),
        ('a.txt', b'\xff\xfe\x00dog', 'line 1, column 1: not UTF-8; save the file as UTF-8'),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        read_class_file(tmp_path / name, 'name')


def test_a_list_is_in_the_order_of_the_labels_and_a_map_by_folder():
    assert in_label_order(['a', 'b'], ['x', 'y'], 2, 'class names') == ['a', 'b']
    assert in_label_order({'y': 'b', 'x': 'a', 'more': 'c'}, ['x', 'y'], 2, 'class names') == ['a', 'b']
    assert in_label_order({'1': 'b', '0': 'a'}, None, 2, 'class names') == ['a', 'b']


@pytest.mark.parametrize(
    ('content', 'match'),
    [
        (['a'], 'there are 1 class names for 2 classes'),
        ({'x': 'a'}, r"name 1 of 2 classes of the data; there is no entry for \['y'\]"),
        ({'p': 'a', 'q': 'b'}, r"name 0 of 2 classes of the data; there is no entry for \['x', 'y'\]"),
    ],
)
def test_a_class_without_a_value_is_an_error(content, match):
    with pytest.raises(ValueError, match=match):
        in_label_order(content, ['x', 'y'], 2, 'class names')


def test_labels_of_timm_models_are_wordnet_ids_or_what_the_config_says():
    model = timm.create_model('test_resnet', num_classes=1000)
    assert timm_labels(model) == WNIDS
    large = timm.create_model('test_resnet', num_classes=21841)
    assert timm_labels(large) == ImageNetInfo('imagenet-22k').label_names()
    assert timm_labels(timm.create_model('test_resnet', num_classes=5)) is None
    own = timm.create_model('test_resnet', num_classes=2, pretrained_cfg_overlay={'label_names': ['cat', 'dog']})
    assert timm_labels(own) == ['cat', 'dog']


def test_classes_are_found_by_name():
    assert match_classes(1000, WNIDS, 1000, WNIDS) is None
    assert match_classes(1000, WNIDS, 3, [WNIDS[7], WNIDS[0], WNIDS[999]]) == [7, 0, 999]
    assert match_classes(1000, WNIDS, 1000, WNIDS[::-1]) == list(range(999, -1, -1))  # timm's --class-map reorders
    assert match_classes(2, ['cat', 'dog'], 2, ['dog', 'cat']) == [1, 0]


@pytest.mark.parametrize(
    ('labels', 'class_names', 'of_whom'),
    [
        (None, list('abcde'), 'its classes'),
        (list('abcde'), None, "the data's classes"),
        (None, None, "the data's classes"),
    ],
)
def test_as_many_classes_are_taken_to_be_the_same_where_one_side_has_no_names(labels, class_names, of_whom, caplog):
    assert match_classes(5, labels, 5, class_names) is None
    assert (
        f"5 classes are assumed to be the data's, in the same order: the names of {of_whom} are unknown" in caplog.text
    )


def test_as_many_classes_of_other_names_are_refused():
    with pytest.raises(ValueError, match=r'it knows 0 of them by name .* give a class map'):
        match_classes(1000, WNIDS, 1000, [f'class {i}' for i in range(1000)])


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        ((1000, WNIDS, 2, ['cat', 'dog']), r"has 1000 classes and the data 2; it knows 0 of them .*\['cat', 'dog'\]"),
        ((1000, WNIDS, 2, ['cat', WNIDS[3]]), r"it knows 1 of them by name \(not \['cat'\]\): give a class map"),
        ((1000, WNIDS, 10, None), 'the data has no class names'),
        (
            (7, None, 5, ['a', 'b', 'c', 'd', 'e']),
            'has 7 classes and the data 5; the names of its classes are unknown',
        ),
        ((1000, WNIDS, 1000, ['cat', *WNIDS[1:]]), r"it knows 999 of them by name \(not \['cat'\]\)"),
    ],
)
def test_classes_that_do_not_match_are_an_error(args, match):
    with pytest.raises(ValueError, match=match):
        match_classes(*args)


def test_a_class_map_names_outputs_by_index_or_name():
    assert resolve_classes(['2', 'a', '1'], 3, ['a', 'b', 'c']) == [2, 0, 1]
    assert resolve_classes(['1', '0'], 2, ['0', '1']) == [1, 0]  # a name goes before an index
    assert resolve_classes(['4', '0'], 5, None) == [4, 0]


@pytest.mark.parametrize(
    ('values', 'labels', 'match'),
    [
        (['0', '3'], None, r'by index from 0 to 2 or by name \(which are unknown here\), got \[.3.\]'),
        (['0', '-1'], None, r'got \[.-1.\]'),
        (['a', 'z'], ['a', 'b', 'c'], r"such as \['a', 'b'\]\), got \['z'\]"),
        (['a', '0'], ['a', 'b', 'c'], r"must name each class of the teacher once, got \['0', 'a'\] more than once"),
    ],
)
def test_a_class_map_that_names_no_output_or_one_twice_is_an_error(values, labels, match):
    with pytest.raises(ValueError, match=match):
        resolve_classes(values, 3, labels)


def test_imagenet_21k_is_not_searched_class_by_class():
    labels = list(ImageNetInfo('imagenet-22k').label_names())
    values, searches = labels[::-1], []

    def watch(frame, event, function):
        if event == 'c_call' and function.__name__ in ('count', 'index'):
            searches.append(function.__name__)

    sys.setprofile(watch)
    try:
        found = resolve_classes(values, len(labels), labels)
        with pytest.raises(ValueError, match=f"once, got .'{labels[0]}', '{labels[1]}'. more than once"):
            resolve_classes([*values, labels[0], labels[1]], len(labels), labels)
    finally:
        sys.setprofile(None)
    assert found == list(range(len(labels) - 1, -1, -1))
    assert len(labels) == 21841
    assert searches == []


def test_a_csv_of_the_map_has_a_column_of_its_own(tmp_path):
    (tmp_path / 'map.csv').write_text('class,teacher\ncat,3\ndog,n02084071\n')
    assert read_class_file(tmp_path / 'map.csv', 'teacher') == {'cat': '3', 'dog': 'n02084071'}
    (tmp_path / 'map.json').write_text(json.dumps({'cat': 3}))
    assert read_class_file(tmp_path / 'map.json', 'teacher') == {'cat': '3'}
