"""Images with any number of labels: targets, loss, metrics against scikit-learn, records."""

import numpy as np
import pytest
from sklearn import metrics

from dynadapt.data import Info
from dynadapt.data.fields import Field
from dynadapt.errors import ConfigError, UnknownName
from dynadapt.tasks import classification
from dynadapt.tasks.multilabel import Task

pytestmark = pytest.mark.usefixtures("fast_compiling")

CLASSES = ("sky", "sea", "boat", "gull")


def info(most=3):
    label = Field("number", classes=CLASSES, most=most)
    return Info("coast", {"image": Field("pixels", size=(8, 8)), "label": label}, {}, "")


def drawn(seed, n=40):
    """Logits, labels padded to three, their mask, and the target."""
    rng = np.random.default_rng(seed)
    target = rng.random((n, 4)) < 0.4
    target[:, 3] = False  # a class without an image
    label, mask = np.zeros((n, 3), np.int32), np.zeros((n, 3), np.float32)
    for row, own in enumerate(target):
        found = np.flatnonzero(own)
        label[row, : len(found)], mask[row, : len(found)] = found, 1
    return rng.normal(size=(n, 4)).astype(np.float32), label, mask, target


def batch(label, label_mask, mask=None):
    mask = np.ones(len(label), np.float32) if mask is None else np.asarray(mask, np.float32)
    return Task(info()).prepare(dict(label=label, label_mask=label_mask, mask=mask), None, True)


def test_targets_have_a_one_for_each_label():
    _, label, mask, target = drawn(1)
    np.testing.assert_array_equal(batch(label, mask)["target"], target)
    one = Task(info(0)).prepare(dict(label=np.array([2, 0]), mask=np.ones(2)), None, True)
    np.testing.assert_array_equal(one["target"], np.eye(4)[[2, 0]])


def test_the_loss_is_binary_cross_entropy_of_unmasked_examples():
    logits, label, label_mask, target = drawn(2)
    mask = np.arange(40) % 3 > 0
    total, weight, _ = Task(info()).loss(logits, batch(label, label_mask, mask))
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    each = -(target * np.log(p) + ~target * np.log(1 - p)).mean(1)
    assert float(weight) == mask.sum()
    np.testing.assert_allclose(total, each[mask].sum(), rtol=1e-5)


def test_metrics_are_those_of_scikit_learn_over_classes_that_tell():
    task, (logits, label, mask, target) = Task(info()), drawn(3)
    rows = {k: np.asarray(v) for k, v in task.rows(logits, batch(label, mask)).items()}
    found = task.value(rows)
    precision = metrics.average_precision_score(target[:, :3], logits[:, :3])
    assert found["mAP"] == pytest.approx(100 * precision, abs=1e-4)
    area = metrics.roc_auc_score(target[:, :3], logits[:, :3])
    assert found["AUC"] == pytest.approx(100 * area, abs=1e-4)
    assert found["classes"] == 3 and found["examples"] == 40
    # In any order and any batches, as rows are gathered.
    turned = {k: v[::-1] for k, v in rows.items()}
    assert task.value(turned) == pytest.approx(found)


def test_a_perfect_answer_and_none():
    task, (_, label, mask, target) = Task(info()), drawn(4)
    rows = task.rows((20 * target - 10).astype(np.float32), batch(label, mask))
    value = task.value({k: np.asarray(v) for k, v in rows.items()})
    assert value["mAP"] == value["AUC"] == pytest.approx(100)
    nothing = {"score": np.zeros((0, 4)), "target": np.zeros((0, 4)), "loss": np.zeros(0)}
    assert task.value(nothing) == dict(loss=0.0, mAP=0.0, AUC=0.0, classes=0, examples=0)


def test_records_name_labels_and_predictions():
    answer = {"probabilities": np.array([0.9, 0.2, 0.5, 0.1])}
    example = dict(name="a.jpg", label=np.array([2, 1, 0]), label_mask=np.array([1, 1, 0]))
    values, content = Task(info()).record(answer, example)
    assert (
        values
        == {
            **dict(file="a.jpg", labels="boat; sea", prediction="sky; boat"),
            **{"p(sky)": 0.9, "p(sea)": 0.2, "p(boat)": 0.5, "p(gull)": 0.1},
        }
        and content == {}
    )
    assert "labels" not in Task(info()).record(answer, dict(name="a.jpg"))[0]
    picture = Task(info()).draw(np.zeros((200, 160, 3), np.uint8), answer, {})
    assert picture.shape[1] == 160 and picture.shape[0] > 200 and picture.max() == 255


def test_mistakes():
    with pytest.raises(UnknownName, match="'maen'; did you mean 'mean'"):
        Task(info(), pool="maen")
    with pytest.raises(ConfigError, match="the task multilabel is for them"):
        classification.Task(info())
