//! Every planted bug is found: the proof that the invariants say something.

use longshore_planted::{Bug, plant};
use longshore_sim::{run, summary};

/// Worlds that are tried before a bug counts as not found.
const SEEDS_MAX: u64 = 400;

#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    for bug in Bug::ALL.iter().copied() {
        plant(Some(bug));
        let found = (1..=SEEDS_MAX).map(|seed| run(seed, false)).find(|outcome| outcome.broken.is_some());
        plant(None);
        match found {
            Some(outcome) => {
                let broken = outcome.broken.as_ref().expect("it was found by that");
                println!("{:<28} found by seed {:>3}: {broken}", bug.name(), outcome.seed);
                // Without the bug the same world is well.
                let healthy = run(outcome.seed, false);
                assert!(healthy.broken.is_none(), "without {}: {}", bug.name(), summary(&healthy));
            }
            None => missed.push(bug.name()),
        }
    }
    let bugs = Bug::ALL.len();
    println!("{} of {bugs} planted bugs are found", bugs - missed.len());
    assert!(missed.is_empty(), "not found in {SEEDS_MAX} worlds each: {}", missed.join(", "));
}
