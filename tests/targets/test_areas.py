import jax
import jax.numpy as jnp
import numpy as np

from dynadapt.targets.areas import areas, by_class

CLASSES = 4


def counted(predicted, labels):
    found = areas(jnp.asarray(predicted), jnp.asarray(labels), CLASSES)
    return jax.tree.map(np.asarray, found)


def test_areas_of_small_maps():
    predicted = np.array([[[0, 1], [2, 2]], [[3, 3], [0, 1]]])
    labels = np.array([[[0, 2], [2, -1]], [[3, 1], [255, 1]]])
    found = counted(predicted, labels)
    assert found["intersection"].tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    assert found["predicted"].tolist() == [[1, 1, 1, 0], [0, 1, 0, 2]]
    assert found["labelled"].tolist() == [[1, 0, 2, 0], [0, 2, 0, 1]]


def test_areas_equal_a_confusion_matrix():
    rng = np.random.default_rng(0)
    predicted = rng.integers(CLASSES, size=(5, 12, 9))
    labels = rng.integers(-1, CLASSES + 1, size=(5, 12, 9))
    rows = counted(predicted, labels)
    known = (labels >= 0) & (labels < CLASSES)
    confusion = np.zeros((CLASSES, CLASSES), int)
    np.add.at(confusion, (labels[known], predicted[known]), 1)
    both = np.diag(confusion)
    wanted = both / (confusion.sum(0) + confusion.sum(1) - both)
    np.testing.assert_allclose(by_class(rows)["iou"], wanted)
    np.testing.assert_allclose(by_class(rows)["acc"], both / confusion.sum(1))


def test_a_class_that_no_image_has():
    rows = counted(np.array([[[0, 1]]]), np.array([[[0, 0]]]))
    found = by_class(rows)
    assert found["iou"].tolist()[:2] == [0.5, 0.0] and np.isnan(found["iou"][2:]).all()
    assert found["acc"][0] == 0.5 and np.isnan(found["acc"][1:]).all()


def test_sums_over_many_images_do_not_overflow():
    rows = {
        k: np.full((3, 2), 2**31 - 1, np.int32) for k in ("intersection", "predicted", "labelled")
    }
    assert by_class(rows)["iou"].tolist() == [1.0, 1.0]
