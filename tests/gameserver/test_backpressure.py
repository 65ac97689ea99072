"""Protects the picture's age on bad links: what waits stays short, good links lose nothing, dead ones are found out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gameserver.backpressure import Backpressure, Limits

CEILING_BPS = 1_000_000
FPS = 16


@dataclass(frozen=True)
class Run:
    policy: Backpressure
    delays_s: list[float]  # from sending to arrival
    sent: int
    bitrates_bps: list[int]


def simulate(
    link_bps: Callable[[float], float],
    round_trip_s: float,
    seconds: float,
    *,
    chunk_frames: int = 4,
    hidden: bool = False,
) -> Run:
    """Chunks of pictures in bursts over a link that serialises, with a client that acks what arrives."""
    policy = Backpressure(CEILING_BPS, FPS)
    acks: deque[tuple[float, int]] = deque()
    delays: list[float] = []
    bitrates: list[int] = []
    free_s, packet = 0.0, 0
    for chunk in range(int(seconds * FPS / chunk_frames)):
        now = chunk * chunk_frames / FPS
        while acks and acks[0][0] <= now:
            at, number = acks.popleft()
            policy.acked(number, at, hidden=hidden)
        for i in range(chunk_frames):
            if policy.admits(now):
                free_s = max(free_s, now) + policy.bitrate_bps / FPS / link_bps(now)
                delays.append(free_s + round_trip_s / 2 - now)
                policy.sent(packet, chunk * chunk_frames + i, now)
                acks.append((free_s + round_trip_s, packet))
                packet += 1
        bitrates.append(policy.bitrate_bps)
        assert CEILING_BPS * policy.limits.floor <= policy.bitrate_bps <= CEILING_BPS
    return Run(policy, delays, packet, bitrates)


@given(round_trip_s=st.floats(0.001, 0.6), headroom=st.floats(1.5, 100), chunk_frames=st.sampled_from([4, 12, 16]))
def test_a_good_link_loses_nothing(round_trip_s: float, headroom: float, chunk_frames: int) -> None:
    run = simulate(lambda _: headroom * CEILING_BPS, round_trip_s, 20, chunk_frames=chunk_frames)
    assert run.policy.skipped_frames == 0
    assert run.policy.bitrate_bps == CEILING_BPS


def test_a_client_that_acks_when_it_shows_loses_nothing_either() -> None:
    policy = Backpressure(CEILING_BPS, FPS)
    for frame in range(0, 480, 12):  # chunks of 12 frames, each frame acked when it is due and 60 ms late
        for i in range(12):
            now = (frame + i) / FPS
            if i == 0:
                for burst in range(12):
                    assert policy.admits(now)
                    policy.sent(frame + burst, frame + burst, now)
            policy.acked(frame + i - 1, now - 0.0025)


@given(share=st.floats(0.25, 0.9), round_trip_s=st.floats(0.002, 0.2))
def test_a_slow_link_gets_a_lower_bitrate_and_not_a_growing_delay(share: float, round_trip_s: float) -> None:
    run = simulate(lambda _: share * CEILING_BPS, round_trip_s, 60)
    settled = run.delays_s[len(run.delays_s) // 2 :]
    burst_s = 4 / FPS / share  # a whole chunk at the ceiling
    assert np.median(settled) < round_trip_s / 2 + 0.35
    assert max(settled) < round_trip_s + 0.12 + 2 * burst_s
    assert run.sent > 0.5 * 60 * FPS
    assert np.mean(run.bitrates_bps[len(run.bitrates_bps) // 2 :]) < 1.1 * share * CEILING_BPS / 0.85


def test_the_rate_comes_back_when_the_link_does() -> None:
    run = simulate(lambda now: (0.3 if now < 20 else 5) * CEILING_BPS, 0.02, 60)
    assert min(run.bitrates_bps) < 0.5 * CEILING_BPS
    assert run.bitrates_bps[-1] == CEILING_BPS


def test_cuts_once_a_round_trip_and_probes_each_half_second() -> None:
    policy = Backpressure(CEILING_BPS, FPS)
    policy.admits(0.0)
    policy.sent(0, 0, 0.0)
    policy.acked(0, 0.2)  # a round trip of 200 ms
    policy.sent(1, 16, 1.0)
    assert policy.admits(1.31)  # 310 ms old, within 200 + 120
    assert not policy.admits(1.33)
    assert not policy.admits(1.35)
    assert policy.bitrate_bps == int(CEILING_BPS * 0.85)  # one cut for both
    assert not policy.admits(1.54)
    assert policy.bitrate_bps == int(int(CEILING_BPS * 0.85) * 0.85)
    low = policy.bitrate_bps
    policy.acked(1, 1.55)
    assert policy.admits(1.9) and policy.bitrate_bps == low
    assert policy.admits(2.05) and policy.bitrate_bps == int(low * 1.05)
    assert policy.skipped_frames == 3


def test_a_hidden_page_gets_a_frame_a_second() -> None:
    run = simulate(lambda _: 10 * CEILING_BPS, 0.01, 30, hidden=True)
    assert 28 <= run.sent <= 36  # the first chunk goes out before its first ack


def test_no_progress_is_found_out_after_the_limit_and_not_before() -> None:
    policy = Backpressure(CEILING_BPS, FPS, Limits(stall_s=5.0))
    assert not policy.stalled(100.0)  # nothing was sent
    policy.sent(0, 0, 100.0)
    policy.sent(1, 1, 104.0)
    assert not policy.stalled(104.9)
    policy.acked(0, 104.9)
    assert not policy.stalled(109.8)  # progress, even if the second is older than five seconds by then
    assert policy.stalled(110.0)
    policy.acked(0, 110.0)  # a repeated ack is no progress
    assert policy.stalled(110.0)


def test_a_client_that_never_acks_costs_a_bounded_number_of_packets() -> None:
    policy = Backpressure(CEILING_BPS, FPS)
    for i in range(2000):
        if policy.admits(i * 0.001):
            policy.sent(i, i, i * 0.001)
    assert policy.unacked_packets <= policy.limits.unacked_packets
    assert policy.skipped_frames >= 1000


@given(st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 40), st.booleans()), max_size=80))
def test_any_acks_at_any_time_are_survived(steps: list[tuple[float, int, bool]]) -> None:
    """Acks of packets never sent, repeated or going back: counters stay sane."""
    policy, now, packet = Backpressure(CEILING_BPS, FPS), 0.0, 0
    for asked, (wait_s, acked, hidden) in enumerate(steps, 1):
        now += wait_s
        if policy.admits(now):
            policy.sent(packet, packet, now)
            packet += 1
        policy.acked(acked, now, hidden=hidden)
        assert packet + policy.skipped_frames == asked
        assert CEILING_BPS * 0.1 <= policy.bitrate_bps <= CEILING_BPS
        assert policy.round_trip_s >= 0
