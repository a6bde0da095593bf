//! `make bench-auth`: what it costs to prove who sent a request, with the keyed hash that is used and with the Ed25519
//! signature that was planned. Decision 6 quotes it.

use std::{hint::black_box, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, anyhow};
use clap::Parser;
use longshore_bench::{Goal, Report};
use longshore_schemas::{
    auth::{KnownKeys, RequestKey, Sender, Signed, Speaker},
    topics,
};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

/// About as large as a worker's report.
const VALUE: [u8; 256] = [7; 256];
const RUNS: usize = 5;

#[derive(Parser)]
struct Arguments {
    /// More rounds
    #[arg(long)]
    full: bool,
}

fn main() -> Result<ExitCode> {
    let rounds = if Arguments::parse().full { 200_000 } else { 20_000 };
    let what = Signed { topic: topics::BUILD_REQUESTS.name, key: b"default", value: &VALUE };
    let key = RequestKey::new(Sender::Control, &[7; 32]);
    let known = KnownKeys::new([key.clone()]);
    let header = key.sign(what);
    let check = || known.check(Speaker::Control, None, [header.as_bytes()], what).is_ok();
    anyhow::ensure!(check(), "a header that was just made is believed");

    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).map_err(|error| anyhow!("a key pair: {error}"))?;
    let public = UnparsedPublicKey::new(&ED25519, pair.public_key().as_ref().to_vec());
    let signature = pair.sign(&VALUE);
    let verify = || public.verify(&VALUE, signature.as_ref()).is_ok();
    anyhow::ensure!(verify(), "a signature that was just made is right");

    let mut report = Report::new("auth");
    report.figure("keyed_hash_sign_us", micros(rounds, || key.sign(what)).context("runs")?, Goal::None);
    report.figure("keyed_hash_check_us", micros(rounds, || check()).context("runs")?, Goal::None);
    report.figure("ed25519_sign_us", micros(rounds, || pair.sign(&VALUE)).context("runs")?, Goal::None);
    report.figure("ed25519_check_us", micros(rounds, || verify()).context("runs")?, Goal::None);
    report.print();
    Ok(ExitCode::SUCCESS)
}

/// Of one call: the median of some runs.
fn micros<T>(rounds: u32, mut call: impl FnMut() -> T) -> Option<f64> {
    let mut runs = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let begun = Instant::now();
        for _ in 0..rounds {
            black_box(call());
        }
        runs.push(begun.elapsed().as_secs_f64() * 1e6 / f64::from(rounds));
    }
    runs.sort_by(f64::total_cmp);
    runs.get(RUNS / 2).copied()
}
