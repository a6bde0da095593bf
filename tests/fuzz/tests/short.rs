//! A short hunt through every target: with the same seed each time, and then with a new one, which is printed.

use std::process::Command;

/// For each target; the first hunt ends with its cases on any machine that is not too slow for them.
const FIXED: [&str; 6] = ["--seed", "20261124", "--cases", "2000", "--seconds", "2.5"];
const FRESH: [&str; 2] = ["--seconds", "1.2"];

#[allow(clippy::print_stdout, reason = "the new seed must be seen where the test fails")]
fn hunt(arguments: &[&str]) {
    let program = env!("CARGO_BIN_EXE_longshore-fuzz");
    let output = Command::new(program).args(arguments).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.starts_with("seed "), "{text}");
}

#[test]
fn nothing_is_found_with_the_usual_seed_and_a_new_one() {
    hunt(&FIXED);
    hunt(&FRESH);
}
