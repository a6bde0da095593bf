//! Requests by hand, without the policy: what they take can be computed.

use super::{World, reception::NONE};
use crate::{
    Clock, Scenario,
    policy::From,
    queue::{Queue, seconds},
};

const MIB: f64 = 1_048_576.0;

/// One pack of 8 MiB, 100 MiB/s everywhere, 10 ms to wherever, blocks of 64 KiB.
fn scenario(nodes: u32) -> Scenario {
    let bits = 100.0 * MIB * 8.0;
    Scenario {
        nodes,
        nodes_per_rack: 1,
        artifact_bytes: 8 << 20,
        node_up_bits_per_second: bits,
        node_down_bits_per_second: bits,
        bucket_bits_per_second: bits,
        rtt_rack_seconds: 0.01,
        rtt_region_seconds: 0.01,
        rtt_bucket_seconds: 0.01,
        step_seconds: Some(0.01),
        ..Scenario::default()
    }
}

/// Nodes that are there and have no policy.
fn world(scenario: &Scenario) -> World {
    let mut world = World::new(scenario, Clock::NONE);
    world.queue = Queue::default();
    for node in &mut world.nodes {
        (node.started, node.connected) = (true, false);
    }
    world.queue.put(0, crate::queue::Due::LookOver);
    world.step_end = world.step;
    world
}

fn ends(world: &mut World) -> Vec<f64> {
    world.run();
    world.nodes.iter().map(|node| node.done_at.map_or(f64::INFINITY, seconds)).collect()
}

#[track_caller]
fn assert_near(actual: &[f64], expected: &[f64]) {
    for (one, other) in actual.iter().zip(expected) {
        assert!((one - other).abs() < 0.000_1 || one == other, "{actual:?}, expected {expected:?}");
    }
}

#[test]
fn a_pack_streams_through_a_chain() {
    let mut world = world(&scenario(3));
    // In the order in which a plan is told: those at the end may ask first.
    world.request(2, 0, From::Peer(1));
    world.request(1, 0, From::Peer(0));
    world.request(0, 0, From::Bucket);
    let first = 0.01 + 0.08;
    // A block, and half a round trip.
    let hop = 0.000_625 + 0.005;
    assert_near(&ends(&mut world), &[first, first + hop, first + 2.0 * hop]);
    assert!(world.running.live == 0 && world.receptions.of(2).next().is_none());
}

#[test]
fn two_children_share_what_their_parent_sends() {
    let mut world = world(&scenario(3));
    world.receptions.set_stored(0, 0);
    world.nodes[0].lacks = 0;
    world.complete(0);
    for node in [1, 2] {
        world.request(node, 0, From::Peer(0));
    }
    let ends = ends(&mut world);
    // Who was first has the whole rate until rates are shared out, and what one leaves is the other's from the next step on.
    let step = seconds(world.step);
    assert!(ends[1..].iter().all(|end| (end - 0.17).abs() < 1.1 * step) && ends[2] > 0.17, "{ends:?}, step {step}");
}

#[test]
fn a_child_of_a_slow_parent_is_as_slow() {
    let mut slow = scenario(2);
    slow.bucket_bits_per_second /= 10.0;
    let mut world = world(&slow);
    world.request(0, 0, From::Bucket);
    world.request(1, 0, From::Peer(0));
    // It catches up what it began later, and is a block behind then.
    assert_near(&ends(&mut world), &[0.81, 0.81 + 0.006_25]);
}

#[test]
fn who_waits_for_nothing_is_told_so_and_another_source_goes_on() {
    let mut world = world(&Scenario { patience_seconds: 10.0, ..scenario(3) });
    world.request(1, 0, From::Peer(0));
    world.request(2, 0, From::Bucket);
    world.scenario.run_seconds_max = 11.0;
    let ends_ = ends(&mut world);
    assert_eq!((world.tally.failures.waiting, world.running.live), (1, 0));
    assert!(ends_[0].is_infinite() && ends_[1].is_infinite());
    assert!(
        world.receptions.of(0).chain(world.receptions.of(1)).next().is_none(),
        "forgotten, for nothing came of them"
    );
}

#[test]
fn what_came_before_a_failure_is_kept() {
    let mut world = world(&scenario(3));
    world.receptions.set_stored(0, 0);
    world.receptions.set_stored(2, 0);
    for node in [0, 2] {
        world.nodes[node].lacks = 0;
        world.complete(node as u32);
    }
    world.request(1, 0, From::Peer(0));
    world.queue.put(50_000_000, crate::queue::Due::Die(0));
    world.scenario.run_seconds_max = 11.0;
    world.run();
    let id = world.receptions.of(1).next().expect("some of it came");
    let reception = &world.receptions[id];
    // The rate at which it came holds until the step ends.
    let some = 4.0..=4.01 + 100.0 * seconds(world.step);
    assert!(some.contains(&(reception.have / MIB)) && reception.upstream == NONE, "{reception:?}");
    assert_eq!(world.tally.failures.unreachable, 1);
    let (begun, left) = (world.now, 8.0 - reception.have / MIB);
    world.scenario.run_seconds_max = 12.0;
    world.request(1, 0, From::Peer(2));
    let end = ends(&mut world)[1];
    assert!((end - seconds(begun) - 0.01 - left / 100.0).abs() < 0.000_1, "{end}");
}

#[test]
fn those_behind_a_node_that_died_go_on_when_the_next_one_to_it_does() {
    let mut world = world(&scenario(3));
    world.receptions.set_stored(0, 0);
    world.nodes[0].lacks = 0;
    world.complete(0);
    world.request(1, 0, From::Peer(0));
    world.request(2, 0, From::Peer(1));
    world.queue.put(50_000_000, crate::queue::Due::Die(0));
    // In the window of five seconds in which it died, enough came: the next one tells.
    world.scenario.run_seconds_max = 11.0;
    world.run();
    assert_eq!((world.tally.failures.unreachable, world.tally.failures.waiting), (1, 0));
    world.scenario.run_seconds_max = 14.0;
    world.request(1, 0, From::Bucket);
    let ends = ends(&mut world);
    assert!(ends[2] > ends[1] && ends[2] < ends[1] + 0.02, "{ends:?}");
    assert_eq!(world.tally.failures.waiting, 0);
}
