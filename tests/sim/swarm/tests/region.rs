//! Whole regions with the real policy: what must hold in each of them, whatever goes wrong.

use longshore_swarm_sim::{Churn, Clock, Hostile, Outcome, RackCut, Scenario, Span, simulate, svg};

/// 40 nodes in 5 racks, 32 packs of 4 MiB, 1 Gbit/s: some 1.1 s of line rate.
fn small() -> Scenario {
    Scenario {
        name: "small".into(),
        nodes: 40,
        nodes_per_rack: 8,
        artifact_bytes: 128 << 20,
        pack_bytes: 4 << 20,
        node_up_bits_per_second: 1e9,
        node_down_bits_per_second: 1e9,
        rack_up_bits_per_second: Some(2e9),
        rack_down_bits_per_second: Some(2e9),
        bucket_bits_per_second: 4e9,
        ..Scenario::default()
    }
}

fn run(scenario: &Scenario) -> Outcome {
    simulate(scenario, Clock::NONE).expect("a sound scenario")
}

#[track_caller]
fn run_to_the_end(scenario: &Scenario) -> Outcome {
    let outcome = run(scenario);
    let bare = || Outcome { curve: Vec::new(), ..outcome.clone() };
    assert_eq!(outcome.incomplete, 0, "{:?}", bare());
    assert_eq!(outcome.wrong_bytes_persisted, 0.0);
    // Every byte that came was sent, and what liars sent was thrown away.
    let lost = outcome.sent_bytes - outcome.received_bytes - outcome.wasted_bytes;
    assert!(lost.abs() <= 1e-6 * outcome.sent_bytes, "{:?}", bare());
    assert!(outcome.max_seconds >= Some(outcome.bound_seconds) || outcome.lacked_bytes == 0.0, "{:?}", bare());
    outcome
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let churn = Churn { fraction: 0.1, from_seconds: 1.0, until_seconds: 3.0, restart_after_seconds: Some(1.0) };
    let scenario = Scenario { straggler_fraction: 0.1, churn, ..small() };
    let (one, other) = (run(&scenario), run(&scenario));
    assert!(one.is_same_run(&other));
    assert_eq!(serde_json::to_string(&one).expect("plain"), serde_json::to_string(&other).expect("plain"));
    assert!(!one.is_same_run(&run(&Scenario { seed: 2, ..scenario })));
}

#[test]
fn one_node_has_all_at_the_slower_of_the_two_rates() {
    for (bucket, down, disk) in [(4e9, 1e9, None), (5e8, 1e9, None), (4e9, 1e9, Some(50e6))] {
        let mut scenario =
            Scenario { nodes: 1, bucket_bits_per_second: bucket, arrival_spread_seconds: 0.0, ..small() };
        (scenario.node_down_bits_per_second, scenario.node_disk_bytes_per_second) = (down, disk);
        scenario.policy.settle_seconds = Some(0.0);
        let outcome = run_to_the_end(&scenario);
        let (took, bound) = (outcome.max_seconds.expect("complete"), outcome.bound_seconds);
        assert!(took >= bound && took < bound * 1.02 + 0.6, "{took} s, bound {bound} s");
        assert_eq!(outcome.bucket_copies, 1.0);
    }
}

#[test]
fn the_laboratory() {
    let outcome = run_to_the_end(&Scenario::preset("lab").expect("named"));
    assert!(outcome.bucket_copies < 1.2 && outcome.rack_copies_max < 1.5, "{outcome:?}");
    assert!((5.3..5.4).contains(&outcome.bound_seconds), "{}", outcome.bound_seconds);
    let shown = outcome.to_string();
    assert!(
        shown.contains("lab: 20 nodes, 16 packs of 4.0 MiB") && shown.contains("at least         5.369 s"),
        "{shown}"
    );
}

#[test]
fn an_update_moves_only_what_is_new() {
    let ordinary = run_to_the_end(&Scenario { reuse_fraction: 0.75, ..small() });
    assert_eq!(ordinary.received_bytes, 40.0 * f64::from(8 << 22));
    let skipped = Scenario { reuse_fraction: 0.75, skipped_nodes_fraction: 0.3, ..small() };
    let outcome = run_to_the_end(&skipped);
    assert!(outcome.received_bytes > ordinary.received_bytes);
    // What others have already does not come from the bucket.
    assert!(outcome.bucket_copies < 1.5, "{}", outcome.bucket_copies);
    assert_eq!(run_to_the_end(&Scenario { reuse_fraction: 1.0, ..small() }).received_bytes, 0.0);
}

#[test]
fn slow_nodes_end_late_and_hold_up_few() {
    let outcome = run_to_the_end(&Scenario { straggler_fraction: 0.1, ..small() });
    assert!(outcome.max_seconds > Some(10.0), "a tenth of the rate: {:?}", outcome.max_seconds);
}

#[test]
fn nodes_that_die_are_not_waited_for_and_those_that_come_back_are() {
    let churn = Churn { fraction: 0.2, from_seconds: 2.2, until_seconds: 3.0, restart_after_seconds: None };
    let outcome = run_to_the_end(&Scenario { churn: churn.clone(), ..small() });
    assert!(outcome.died > 0 && outcome.complete + outcome.died == 40, "{}", outcome.died);
    let outcome = run_to_the_end(&Scenario { churn: Churn { restart_after_seconds: Some(2.0), ..churn }, ..small() });
    assert_eq!((outcome.complete, outcome.died), (40, 0));
}

#[test]
fn hostile_nodes_of_each_kind() {
    type Set = fn(&mut Hostile);
    let kinds: [(&str, Set); 6] = [
        ("wrong bytes", |hostile| hostile.wrong_bytes_nodes = 2),
        ("silent", |hostile| hostile.silent_nodes = 2),
        ("drip", |hostile| hostile.drip_nodes = 2),
        ("false claims", |hostile| hostile.false_claim_nodes = 2),
        ("floods", |hostile| hostile.flood_nodes = 2),
        ("all of them", |hostile| {
            hostile.wrong_bytes_nodes = 1;
            (hostile.silent_nodes, hostile.drip_nodes, hostile.false_claim_nodes, hostile.flood_nodes) = (1, 1, 1, 1);
        }),
    ];
    for (name, set) in kinds {
        let mut scenario = Scenario { name: name.into(), ..small() };
        set(&mut scenario.hostile);
        let outcome = run_to_the_end(&scenario);
        let failures = outcome.failures;
        match name {
            "wrong bytes" => assert!(failures.lied > 0 && outcome.banned > 0, "{name}: {failures:?}"),
            "silent" | "drip" => assert!(failures.unreachable > 0, "{name}: {failures:?}"),
            "false claims" => assert!(failures.missing > 0, "{name}: {failures:?}"),
            _ => {}
        }
    }
}

#[test]
fn a_new_tracker_a_bucket_that_is_away_and_a_rack_that_is_cut_off() {
    let table = [
        Scenario { tracker_restart_at_seconds: Some(2.5), ..small() },
        Scenario { bucket_away: Some(Span { from_seconds: 2.1, until_seconds: Some(4.0) }), ..small() },
        Scenario { rack_cuts: vec![RackCut { rack: 1, from_seconds: 2.3, until_seconds: 12.0 }], ..small() },
        Scenario { rack_cuts: vec![RackCut { rack: 0, from_seconds: 0.0, until_seconds: 3.0 }], ..small() },
    ];
    for scenario in table {
        run_to_the_end(&scenario);
    }
    // For good, before anybody has anything: nobody can be complete, and the run ends.
    let span = Span { from_seconds: 0.0, until_seconds: None };
    let outcome = run(&Scenario { bucket_away: Some(span), run_seconds_max: 20.0, ..small() });
    assert_eq!((outcome.complete, outcome.incomplete, outcome.max_seconds), (0, 40, None));
}

#[test]
fn coarse_packs_take_about_as_long_as_true_ones() {
    let exact = Scenario { artifact_bytes: 256 << 20, pack_bytes: 2 << 20, ..small() };
    let coarse = exact.clone().with_packs(64);
    let (exact, coarse) = (run_to_the_end(&exact), run_to_the_end(&coarse));
    let errors = coarse.error_against(&exact);
    assert!(errors.iter().all(|error| error.is_some_and(|error| error.abs() < 0.25)), "{errors:?}");
}

#[test]
fn a_picture_has_curves_axes_and_names() {
    let outcome = run(&small());
    let picture = svg(&[("one & only", &outcome), ("twice", &outcome)]);
    for part in
        ["<svg", "seconds since the order", "nodes complete", "one &amp; only", "100 %", "stroke-dasharray", "</svg>"]
    {
        assert!(picture.contains(part), "{part}");
    }
    assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
}
