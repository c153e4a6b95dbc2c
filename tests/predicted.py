"""Predictions and suites without pictures, for the tests of figures, reports and plots."""

import numpy as np

from timm_dad.evaluation.predict import Predictions
from timm_dad.evaluation.report.metrics import ALEXNET_ERRORS
from timm_dad.evaluation.suites.suite import Part, Suite

IMAGENET_C = [f'{corruption}/{severity}' for corruption in ALEXNET_ERRORS for severity in range(1, 6)]


def predict(correct, classes=5, confidence=0.5, correct5=None):
    """Predictions of images of alternating classes, right where ``correct`` says."""
    correct = np.asarray(correct, bool)
    label = np.arange(len(correct)) % classes
    return Predictions(
        label=label,
        predicted=np.where(correct, label, (label + 1) % classes),
        confidence=np.broadcast_to(np.float32(confidence), correct.shape).copy(),
        correct=correct,
        correct5=correct if correct5 is None else np.asarray(correct5, bool),
    )


def random_predictions(seed, images=40, accuracy=0.6, classes=5):
    rng = np.random.default_rng(seed)
    correct = rng.random(images) < accuracy
    return predict(correct, classes, rng.random(images), correct | (rng.random(images) < 0.5))


def suite(name, kind, parts=('val',), **more):
    parts = tuple(Part(name=part, dataset=None) for part in parts)
    return Suite(name=name, kind=kind, parts=parts, **{'class_names': None, 'num_classes': 6, **more})


def results_of(models, suites, images=40):
    """Random predictions of each model, with its accuracy, on all parts."""
    return {
        model: {
            one.name: {
                part.name: random_predictions([place, index, number], images, accuracy - 0.1 * (one.kind != 'clean'))
                for number, part in enumerate(one.parts)
            }
            for index, one in enumerate(suites)
        }
        for place, (model, accuracy) in enumerate(models.items())
    }
