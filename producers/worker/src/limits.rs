//! What one worker takes on and keeps.

use longshore_service::limits::Limit;

use crate::{client, config, log, process};

pub static QUEUES: Limit =
    Limit::fixed("worker.queues", config::QUEUES_MAX as u64, "queues of one worker", "the worker does not start");
pub static LOG_BYTES: Limit = Limit::fixed(
    "worker.log_bytes",
    log::LOG_BYTES_MAX,
    "bytes of one attempt's output",
    "left out, and a line says so",
);
pub static LOG_PIECES: Limit = Limit::fixed(
    "worker.log_pieces",
    log::PIECES_MAX as u64,
    "pieces of 64 KiB that wait to be stored",
    "the build waits 10 s, then output is left out, and a line says how much",
);
pub static TAIL_BYTES: Limit =
    Limit::fixed("worker.tail_bytes", process::TAIL_BYTES_MAX as u64, "bytes of output in a failure's message", "cut");
pub static ANSWER_BYTES: Limit =
    Limit::fixed("client.answer_bytes", client::ANSWER_BYTES_MAX as u64, "bytes of one answer", "the call fails");

/// All of them.
pub static LIMITS: &[&Limit] = &[&QUEUES, &LOG_BYTES, &LOG_PIECES, &TAIL_BYTES, &ANSWER_BYTES];
