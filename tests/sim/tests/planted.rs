//! Every planted bug is found: the proof that the invariants say something.

use longshore_planted::{Bug, plant};
use longshore_sim::{run, summary};

/// Worlds that are tried before a bug counts as not found.
const SEEDS_MAX: u64 = 400;

#[test]
fn every_planted_bug_is_found() {
    let begun = std::time::Instant::now();
    let mut missed = Vec::new();
    for bug in Bug::ALL.iter().copied() {
        plant(Some(bug));
        let found = (1..=SEEDS_MAX).map(|seed| run(seed, false)).find(|outcome| outcome.broken.is_some());
        plant(None);
        let Some(outcome) = found else {
            println!("{:<28} not found in {SEEDS_MAX} worlds", bug.name());
            missed.push(bug.name());
            continue;
        };
        let broken = outcome.broken.as_ref().expect("it was found by that");
        println!("{:<28} found by seed {:>3}: {broken}", bug.name(), outcome.seed);
        // Without the bug the same world is well, so it was this bug that was found.
        let healthy = run(outcome.seed, false);
        assert!(healthy.broken.is_none(), "without {}: {}", bug.name(), summary(&healthy));
    }
    let bugs = Bug::ALL.len();
    let seconds = begun.elapsed().as_secs_f64();
    println!("{} of {bugs} planted bugs are found, in {seconds:.1} s", bugs - missed.len());
    assert!(missed.is_empty(), "not found in {SEEDS_MAX} worlds each: {}", missed.join(", "));
}
