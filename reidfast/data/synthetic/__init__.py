# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Rendered people: seeded, articulated, dressed, seen by different cameras. No download, no photograph of anybody.

`World(seed, difficulty).render(pid, camid, index)` is one picture with its mask, parts and visibility, the same bytes
whatever was rendered before. `write_synthetic` makes a data set of them, `contact_sheet` a picture to look at.
`Track(world, pid, camid).frame(i)` is a frame of a walk, `write_synthetic_tracklets` a data set of walks.
`CrowdWorld.render(cast, camid, index)` is a whole scene with several people in it, for person search.
"""

from reidfast.data.synthetic.crowds import Crowd, CrowdSet, CrowdWorld
from reidfast.data.synthetic.figure import PARTS, Figure, Pose, View, draw_figure
from reidfast.data.synthetic.people import Person, draw_person
from reidfast.data.synthetic.scenes import Camera, draw_camera
from reidfast.data.synthetic.sets import SyntheticSet, contact_sheet, write_synthetic
from reidfast.data.synthetic.tracks import EVENTS, Event, Track, TrackFrame
from reidfast.data.synthetic.walks import SyntheticTracklets, write_synthetic_tracklets
from reidfast.data.synthetic.world import Photograph, World

__all__ = [
    "EVENTS",
    "PARTS",
    "Camera",
    "Crowd",
    "CrowdSet",
    "CrowdWorld",
    "Event",
    "Figure",
    "Person",
    "Photograph",
    "Pose",
    "SyntheticSet",
    "SyntheticTracklets",
    "Track",
    "TrackFrame",
    "View",
    "World",
    "contact_sheet",
    "draw_camera",
    "draw_figure",
    "draw_person",
    "write_synthetic",
    "write_synthetic_tracklets",
]
