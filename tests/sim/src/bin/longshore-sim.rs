//! `make sim SEEDS=n` and `make sim SEED=k`.

use anyhow::{Result, bail};
use clap::Parser;

#[derive(Parser)]
#[command(about = "Runs simulated worlds and checks the invariants of the design")]
struct Arguments {
    /// Runs this world alone, and prints its whole trace.
    #[arg(long)]
    seed: Option<u64>,
    /// How many worlds to run, from `--from` on.
    #[arg(long, default_value_t = 300)]
    seeds: u64,
    #[arg(long, default_value_t = 1)]
    from: u64,
}

#[expect(clippy::print_stdout, reason = "the trace is what this program is for")]
fn main() -> Result<()> {
    let Arguments { seed, seeds, from } = Arguments::parse();
    if let Some(seed) = seed {
        let outcome = longshore_sim::run(seed, true);
        println!("{}", outcome.trace.join("\n"));
        println!("{}", longshore_sim::summary(&outcome));
        return match outcome.broken {
            Some(_) => bail!("seed {seed} breaks an invariant"),
            None => Ok(()),
        };
    }
    let begun = std::time::Instant::now();
    let (mut facts, mut steps, mut virtual_seconds) = (0, 0, 0);
    for seed in from..from + seeds {
        let outcome = longshore_sim::run(seed, false);
        facts += outcome.facts;
        steps += outcome.steps;
        virtual_seconds += outcome.virtual_seconds;
        if outcome.broken.is_some() {
            println!("{}", outcome.trace.join("\n"));
            bail!("{}", longshore_sim::summary(&outcome));
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{seeds} worlds, {steps} events, {facts} facts, {} virtual hours in {seconds:.1} s: all invariants hold",
        virtual_seconds / 3_600
    );
    Ok(())
}
