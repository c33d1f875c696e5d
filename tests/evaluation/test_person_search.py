# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""person_search: hand-computed cases, and loops over sorted lists as the released routines have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reidfast.evaluation import (
    Detections,
    SearchQueries,
    SearchTruth,
    box_iou,
    person_search,
    person_search_sweep,
)

BOX = [0.0, 0.0, 40.0, 80.0]
FAR = [200.0, 0.0, 240.0, 80.0]
HALF = [0.0, 30.0, 40.0, 110.0]  # covers BOX with IoU 50 / 110


def similar(*values):
    """Detections of query 0 alone, in images 0, 1, 2 ..."""
    return {"queries": [0] * len(values), "similarities": list(values)}


def hand_made():
    """Five boxes; images 1 and 3 hold the person and the right box, image 5 holds the person unseen."""
    queries = SearchQueries([4], [-1])
    found = Detections([0, 1, 2, 3, 4], [FAR, BOX, FAR, BOX, FAR], **similar(0.9, 0.8, 0.7, 0.6, 0.5))
    truth = SearchTruth([0, 1, 2, 3, 5], [BOX, BOX, BOX, BOX, BOX], [9, 4, 9, 4, 4])
    return queries, found, truth


def test_published_vector():
    # y = 0, 1, 0, 1, 0 sorted, 3 images with the person, 2 found
    step = person_search(*hand_made())
    assert step.mean_ap == pytest.approx(1 / 3, abs=1e-12)
    trapezoid = person_search(*hand_made(), average_precision="trapezoid")
    assert trapezoid.mean_ap == pytest.approx(2 / 9, abs=1e-12)
    assert step.cmc[:3].tolist() == [0, 1, 1] and step.first_match.tolist() == [2]
    assert (step.positives[0], step.found[0]) == (3, 2) and step.recall == pytest.approx(2 / 3)


def test_only_the_first_box_of_an_image_is_right():
    found = Detections([0, 0, 0], [BOX, BOX, FAR], **similar(0.5, 0.9, 0.7))
    got = person_search(SearchQueries([1], [-1]), found, SearchTruth([0], [BOX], [1]))
    assert got.mean_ap == 1.0 and got.found[0] == 1
    # a badly placed better match does not stop the next from being right
    found = Detections([0, 0], [FAR, BOX], **similar(0.9, 0.5))
    got = person_search(SearchQueries([1], [-1]), found, SearchTruth([0], [BOX], [1]))
    assert got.mean_ap == 0.5 and got.first_match[0] == 2


def test_small_people_need_less_overlap():
    # 10 x 20: the threshold is 200 / (20 * 30) = 1/3, not 0.5
    small, near = [0, 0, 10, 20], [0, 10, 10, 30]  # IoU 100 / 300 = 1/3 exactly
    for box, wanted in ((near, 1.0), ([0, 10.2, 10, 30.2], 0.0)):
        got = person_search(
            SearchQueries([1], [-1]), Detections([0], [box], **similar(1.0)), SearchTruth([0], [small], [1])
        )
        assert got.mean_ap == wanted
    big, off = [0, 0, 400, 800], [0, 0, 400, 400]  # threshold 0.5, IoU exactly 0.5
    got = person_search(SearchQueries([1], [-1]), Detections([0], [off], **similar(1.0)), SearchTruth([0], [big], [1]))
    assert got.mean_ap == 1.0


def test_galleries_own_image_and_cameras():
    features = np.eye(2)
    found = Detections([0, 1, 2, 3], [BOX] * 4, features=features[[0, 0, 0, 0]])
    truth = SearchTruth([0, 1, 2, 3], [BOX] * 4, [1, 1, 2, 1])
    queries = SearchQueries([1], [0], features[:1])
    everywhere = person_search(queries, found, truth)
    assert everywhere.positives[0] == 2  # not the query's own image
    assert everywhere.ap[0] == pytest.approx((1 / 1 + 2 / 3) / 2)
    chosen = person_search(queries, found, truth, galleries=[[0, 2, 3]])
    assert chosen.positives[0] == 1 and chosen.ap[0] == pytest.approx(1 / 2)
    across = person_search(queries, found, truth, image_camids=[5, 5, 6, 6], other_cameras=True)
    assert across.positives[0] == 1 and across.ap[0] == pytest.approx(1 / 2)
    with pytest.raises(ValueError, match="image_camids"):
        person_search(queries, found, truth, other_cameras=True)


def test_weak_detections_are_not_retrieved():
    truth, queries = SearchTruth([0, 1], [BOX, BOX], [1, 1]), SearchQueries([1], [-1], np.eye(2)[:1])
    found = Detections([0, 1], [BOX, BOX], [0.4, 0.5], np.eye(2)[[0, 0]])
    assert person_search(queries, found, truth).found[0] == 1
    assert person_search(queries, found, truth, score_threshold=0.0).found[0] == 2
    assert person_search(queries, found, truth, score_threshold=0.9).ap[0] == 0.0


def test_nothing_to_find_is_reported():
    found = Detections([0], [BOX], features=np.eye(2)[:1])
    got = person_search(SearchQueries([1, 2], [-1, -1], np.eye(2)), found, SearchTruth([0], [BOX], [1]))
    assert got.skipped.tolist() == [1] and np.isnan(got.ap[1]) and got.mean_ap == 1.0 and got.cmc[0] == 1.0
    with pytest.raises(ValueError, match="gallery images"):
        person_search(SearchQueries([3], [-1], np.eye(2)[:1]), found, SearchTruth([0], [BOX], [1]))


def test_no_detection_at_all():
    nothing = Detections(np.empty(0, int), np.empty((0, 4)), features=np.empty((0, 2)))
    got = person_search(SearchQueries([1], [-1], np.eye(2)[:1]), nothing, SearchTruth([0], [BOX], [1]))
    assert got.ap.tolist() == [0.0] and got.first_match.tolist() == [-1] and got.recall == 0.0
    cameras = {"protocol": "prw", "image_camids": [0]}
    got = person_search(SearchQueries([1], [-1], np.eye(2)[:1]), nothing, SearchTruth([0], [BOX], [1]), **cameras)
    assert got.ap.tolist() == [0.0]


def test_prw_by_hand():
    # query of person 1 in image 0 (camera 0); images 1, 2 are camera 1, image 3 camera 0
    images = [0, 1, 1, 1, 2, 2, 3]
    boxes = [BOX, BOX, [0, 4, 40, 84], HALF, FAR, BOX, BOX]
    likeness = [1.0, 0.6, 0.9, 0.8, 0.95, 0.7, 0.99]
    # image 1: the exact box is the person, its shifted copy and HALF (0.3 <= IoU < 0.5) are junk
    # image 2: FAR covers nobody, BOX covers a person without a name: junk; person 1 at another place is missed
    truth = SearchTruth([0, 1, 2, 2, 3], [BOX, BOX, BOX, [400, 0, 440, 80], BOX], [1, 1, -2, 1, 1])
    found = Detections(images, boxes, queries=[0] * 7, similarities=likeness)
    options = {"protocol": "prw", "image_camids": [0, 1, 1, 0]}
    got = person_search(SearchQueries([1], [0]), found, truth, **options)
    # what counts: FAR 0.95, the right box 0.6; one of two found, at rank 2
    assert got.positives[0] == 2 and got.found[0] == 1 and got.first_match[0] == 2
    assert got.ap[0] == pytest.approx((0 / 1 + 1 / 2) / 2 / 2)
    step = person_search(SearchQueries([1], [0]), found, truth, average_precision="step", **options)
    assert step.ap[0] == pytest.approx(1 / 2 / 2)
    shallow = person_search(SearchQueries([1], [0]), found, truth, depth=1, **options)
    assert shallow.ap[0] == 0.0 and shallow.positives[0] == 2


def test_box_iou():
    assert box_iou([0, 0, 1, 1], [0, 0, 1, 1], inclusive=True) == 1.0
    assert box_iou([0, 0, 9, 9], [5, 0, 14, 9], inclusive=True) == pytest.approx(50 / 150)
    assert box_iou([0, 0, 10, 10], [10, 0, 20, 10]) == 0.0
    assert box_iou([0, 0, 10, 10], [9, 0, 18, 9], inclusive=True) > 0  # they share a column of pixels
    assert box_iou([3, 3, 3, 3], [3, 3, 3, 3]) == 0.0  # no area
    assert box_iou(np.zeros((5, 1, 4)), np.ones((3, 4))).shape == (5, 3)


def make_case(seed, queries=12, images=30, people=6):
    rng = np.random.default_rng(seed)
    true_image = np.repeat(np.arange(images), 3)
    corner = rng.uniform(0, 200, (len(true_image), 2))
    true_box = np.hstack([corner, corner + rng.uniform(8, 90, (len(true_image), 2))])
    true_id = np.concatenate([rng.choice(np.r_[-2, -1, 1 : people + 1], 3, replace=False) for _ in range(images)])
    take = rng.integers(0, len(true_image), 200)
    det_box = true_box[take] + rng.normal(0, 6, (200, 4))
    det_box[:, 2:] = np.maximum(det_box[:, :2] + 1, det_box[:, 2:])
    wild = rng.random(200) < 0.2
    det_box[wild, :2], det_box[wild, 2:] = 300, 340
    features = rng.normal(size=(200, 4)).round(1)
    features[50:60] = features[:10]  # ties
    scores = rng.random(200).round(2)
    cameras = rng.integers(0, 3, images)
    known = np.flatnonzero(true_id > 0)
    chosen = rng.choice(known, queries, replace=False)
    q = SearchQueries(true_id[chosen], true_image[chosen], rng.normal(size=(queries, 4)))
    found = Detections(true_image[take], det_box, scores, features)
    return q, found, SearchTruth(true_image, true_box, true_id), cameras


def likeness(q, found):
    a, b = (torch.from_numpy(x) for x in (q.features, found.features))
    a, b = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-300) for x in (a, b))
    return (a @ b.T).numpy()


def loop_cuhk(q, found, truth, gallery, i, threshold=0.5):
    sims = likeness(q, found)[i]
    listed, count_gt, count_tp = [], 0, 0
    for image in gallery:
        if image == q.images[i]:
            continue
        gt = [b for b, n, p in zip(truth.boxes, truth.images, truth.pids, strict=True) if n == image and p == q.pids[i]]
        count_gt += bool(gt)
        rows = [r for r in np.flatnonzero(found.images == image) if found.scores[r] >= threshold]
        rows.sort(key=lambda r: (-sims[r], r))
        done = False
        for r in rows:
            label = 0
            if gt and not done:
                w, h = gt[0][2] - gt[0][0], gt[0][3] - gt[0][1]
                if float(box_iou(found.boxes[r], gt[0])) >= min(0.5, w * h / ((w + 10) * (h + 10))):
                    label, done = 1, True
                    count_tp += 1
            listed.append((-sims[r], r, label))
    y = [label for *_, label in sorted(listed)]
    hits = np.flatnonzero(y) + 1
    ap = (np.arange(1, len(hits) + 1) / hits).mean() * count_tp / count_gt if len(hits) else 0.0
    return (ap, hits[0] if len(hits) else -1, count_gt) if count_gt else (np.nan, -1, 0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("some", [False, True], ids=["all", "galleries"])
def test_cuhk_matches_loop(seed, some):
    q, found, truth, _ = make_case(seed)
    rng = np.random.default_rng(seed)
    galleries = [rng.choice(30, 12, replace=False) for _ in q.pids] if some else None
    got = person_search(q, found, truth, galleries=galleries)
    for i in range(len(q.pids)):
        ap, first, count = loop_cuhk(q, found, truth, range(30) if galleries is None else galleries[i], i)
        assert got.positives[i] == count and got.first_match[i] == first
        np.testing.assert_allclose(got.ap[i], ap, atol=1e-12)
    assert got.found.sum() > 5  # the case is not empty


def loop_prw(q, found, truth, cameras, i, threshold):
    """The released routine in loops: labels, good, junk, missed, then compute_AP."""
    label, missed = np.zeros(len(found.images), int), []
    for image in range(len(cameras)):
        rows, true = np.flatnonzero(found.images == image), np.flatnonzero(truth.images == image)
        flag, value = np.zeros(len(true), bool), {}
        for r in rows:
            overlap = [float(box_iou(truth.boxes[t], found.boxes[r], inclusive=True)) for t in true]
            best = int(np.argmax(overlap))
            value[r] = overlap[best]
            if overlap[best] >= 0.5:
                label[r], flag[best] = truth.pids[true[best]], True
            elif overlap[best] >= 0.3:
                label[r] = -1
        for person in np.unique(label[rows]):
            same = [r for r in rows if label[r] == person and person > 0]
            if len(same) > 1:
                same.remove(max(same, key=lambda r: (value[r], -r)))
                label[same] = -1
        missed += [(truth.pids[t], cameras[image]) for t, f in zip(true, flag, strict=True) if not f]
    pid, cam = q.pids[i], cameras[q.images[i]]
    det_cam = cameras[found.images]
    good = set(np.flatnonzero((label == pid) & (det_cam != cam)))
    n_good = len(good) + sum(p == pid and c != cam for p, c in missed)
    sims = likeness(q, found)[i]
    keep = [
        r
        for r in np.argsort(-sims, kind="stable")
        if label[r] >= 0 and not (label[r] == pid and det_cam[r] == cam) and found.scores[r] >= threshold
    ]
    ap, hits, old_recall, old_precision, first = 0.0, 0, 0.0, 1.0, -1
    for j, r in enumerate(keep):
        if r in good:
            hits += 1
            first = j + 1 if first < 0 else first
        recall, precision = hits / n_good, hits / (j + 1)
        ap += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return ap, first, n_good


@pytest.mark.parametrize("seed", range(4))
def test_prw_matches_loop(seed):
    q, found, truth, cameras = make_case(seed, people=4)
    got = person_search(q, found, truth, protocol="prw", image_camids=cameras, score_threshold=0.3)
    for i in range(len(q.pids)):
        ap, first, count = loop_prw(q, found, truth, cameras, i, 0.3)
        assert got.positives[i] == count and got.first_match[i] == first
        np.testing.assert_allclose(got.ap[i], ap, atol=1e-12)
    assert got.found.sum() > 5 and got.positives.sum() > got.found.sum()


def test_boxes_made_for_each_query_equal_shared_ones():
    q, found, truth, cameras = make_case(1)
    sims = likeness(q, found)
    n, m = sims.shape
    own = Detections(
        np.tile(found.images, n),
        np.tile(found.boxes, (n, 1)),
        np.tile(found.scores, n),
        queries=np.repeat(np.arange(n), m),
        similarities=sims.ravel(),
    )
    for options in ({}, {"protocol": "prw", "image_camids": cameras}):
        a, b = (person_search(q, d, truth, **options) for d in (found, own))
        np.testing.assert_array_equal(a.ap, b.ap)
        np.testing.assert_array_equal(a.first_match, b.first_match)


def test_torch_and_numpy_agree():
    q, found, truth, _ = make_case(2)
    a = person_search(q, found, truth)
    b = person_search(*(type(t)(*(None if x is None else torch.as_tensor(x) for x in t)) for t in (q, found, truth)))
    np.testing.assert_array_equal(a.ap, b.ap)


def test_sweep():
    q, found, truth, cameras = make_case(3)
    curve = person_search_sweep(q, found, truth, pieces=5, protocol="prw", image_camids=cameras)
    boxes = [b for b, _ in curve]
    assert boxes == sorted(boxes, reverse=True) and len(curve) == 5
    all_of_them = person_search(q, found, truth, protocol="prw", image_camids=cameras, score_threshold=-1.0)
    assert curve[0][1].mean_ap == all_of_them.mean_ap
    assert (
        len({r.positives.sum() for _, r in curve}) == 1
    )  # a higher threshold loses boxes, it does not shrink the task
    assert curve[-1][1].recall < curve[0][1].recall


GOOD = {
    "queries": SearchQueries([1], [-1], np.eye(2)[:1]),
    "detections": Detections([0], [BOX], features=np.eye(2)[:1]),
    "truth": SearchTruth([0], [BOX], [1]),
}


@pytest.mark.parametrize(
    "changed,error,words",
    [
        ({"protocol": "prv"}, ValueError, "cuhk_sysu"),
        ({"protocol": "prw"}, ValueError, "image_camids"),
        ({"average_precision": "area"}, ValueError, "step"),
        ({"iou": 0.0}, ValueError, r"iou in \(0, 1\]"),
        ({"max_rank": 0}, ValueError, "max_rank >= 1"),
        ({"depth": 0.5}, TypeError, "depth"),
        ({"galleries": []}, ValueError, "one gallery for each of 1"),
        ({"galleries": [[-1]]}, ValueError, r"galleries in \[0, 1\)"),
        ({"image_camids": np.empty(0, int)}, ValueError, "as many as image_camids"),
        ({"queries": SearchQueries([], [], np.eye(2))}, ValueError, "at least one query"),
        ({"queries": SearchQueries([-1], [0], np.eye(2)[:1])}, ValueError, "pid -1 in row 0"),
        ({"queries": SearchQueries([1], [0], np.eye(3)[:1])}, ValueError, "one size, got 3 and 2"),
        ({"queries": SearchQueries([1], [0], [[np.nan, 0]])}, ValueError, "finite queries.features"),
        ({"queries": SearchQueries([1.0], [0], np.eye(2)[:1])}, TypeError, "queries.pids of integers"),
        ({"detections": Detections([0], [BOX])}, ValueError, "expected features"),
        ({"detections": Detections([0], [BOX], queries=[0])}, ValueError, "queries and similarities"),
        ({"detections": Detections([0], [BOX], queries=[1], similarities=[0.5])}, ValueError, "the queries"),
        ({"detections": Detections([0], [BOX[:3]], features=np.eye(2)[:1])}, ValueError, r"\(1, 4\)"),
        ({"detections": Detections([0], [BOX[::-1]], features=np.eye(2)[:1])}, ValueError, "x2 >= x1"),
        ({"detections": Detections([-1], [BOX], features=np.eye(2)[:1])}, ValueError, "detections.images"),
        ({"truth": SearchTruth([0], [BOX, BOX], [1])}, ValueError, "truth.boxes"),
    ],
)
def test_bad_inputs(changed, error, words):
    arguments = {**GOOD, **changed}
    with pytest.raises(error, match=words) as caught:
        person_search(**arguments)
    assert str(caught.value).startswith("person_search: expected")
