"""Faults upon real processes; `make chaos-test` runs those marked chaos.

Others stand where what they break is tested: a replica killed or frozen in mid-broadcast in
tests/unit/learner/publishing, Redis that is full, read-only or rolled back in tests/unit/common and
tests/unit/delivery, wrong clocks of replicas there too, disks that are full and learners that are
killed whole or frozen in tests/ring/test_recorded.py, all of a demo in tests/ring/test_demo.py.
"""
