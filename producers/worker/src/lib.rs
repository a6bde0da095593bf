//! The worker: claims jobs, builds them, publishes what comes out.
//!
//! ```text
//! slot (one per queue):  claim ──assignment──▶ attempt ──▶ claim …
//!
//! attempt:   git fetch ─▶ checkout ─▶ command ─▶ publish ─▶ finish
//!              │             │           │          └──packs──▶ bucket, by presigned PUTs
//!              └──under the guard────────┘
//!                    └──output──▶ log ──segments──▶ bucket
//!            beats ──"the attempt is over"──▶ stops all of the above
//! ```
//!
//! - [`client`] speaks to the API: JSON, problems, one error that says what to do. The CLI uses it as well.
//! - [`guard`] is a process that owns all processes of one command. Whatever becomes of the worker, none outlives it.
//! - [`uploads`] is where packs go, from wherever they are published; `longshore artifact import` uses it as well.
//! - A slot does one job at a time; a worker with several queues does at most one job of each at once, so that a claim that
//!   is answered is always taken up.
//!
//! The worker knows no queue, no log and no bucket's keys: it is told what to build, and by the attempt's credential where
//! to put it. Whether an attempt still counts is the server's word alone; a worker that cannot ask goes on working, because
//! what a late attempt stores harms nobody.

mod attempt;
mod bases;
mod beats;
pub mod client;
mod config;
mod error;
mod git;
pub mod guard;
pub mod limits;
mod log;
pub mod packs;
mod process;
mod tidy;
pub mod uploads;
mod worker;

pub use config::{GitLimits, GuardProgram, WorkerConfig};
pub use error::Error;
pub use longshore_service::chain;
pub use reqwest::Url;
pub use worker::Worker;

/// How long to wait after one more failure.
fn wait_after(backoff: &mut longshore_service::retry::Backoff) -> std::time::Duration {
    backoff.next_wait(&mut rand::rng())
}
