//! Worlds of many seeds, each with its own faults.

use longshore_sim::{run, summary};

/// Worlds that CI runs, and those of `FULL=1`.
const SEEDS: u64 = 300;
const SEEDS_FULL: u64 = 2_000;

#[test]
fn every_world_keeps_every_invariant() {
    let seeds = if std::env::var_os("FULL").is_some() { SEEDS_FULL } else { SEEDS };
    let begun = std::time::Instant::now();
    let (mut facts, mut steps) = (0, 0);
    for seed in 1..=seeds {
        let outcome = run(seed, false);
        assert!(outcome.broken.is_none(), "{}\n{}", outcome.trace.join("\n"), summary(&outcome));
        assert!(outcome.facts > 0, "nothing happens in the world of seed {seed}");
        facts += outcome.facts;
        steps += outcome.steps;
    }
    println!("{seeds} worlds, {steps} events, {facts} facts in {:.1} s", begun.elapsed().as_secs_f64());
}

#[test]
fn a_seed_always_makes_the_same_world() {
    for seed in [1, 7, 42, 1_000_003] {
        let [first, second] = [(); 2].map(|()| run(seed, false));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_ne!(first.hash, run(seed + 1, false).hash);
    }
}
