//! The limits that the processors hold. They know no metrics, so they are listed here.

use longshore_log::{BATCH_BYTES_MAX, RECORD_BYTES_MAX};
use longshore_queue::{
    ARGUMENTS_MAX, HEALTH_SECONDS_MAX, MESSAGE_BYTES_MAX, OUTPUT_BYTES_MAX, REPOSITORY_BYTES_MAX, SPEC_BYTES_MAX,
    STOP_SECONDS_MAX, TIME_LIMIT_SECONDS_MAX, VARIABLES_MAX,
};
use longshore_replication::ORIGIN_BYTES_MAX;
use longshore_runtime::step::{REQUESTS_MAX, TRANSACTION_BYTES_SOFT_MAX};
use longshore_service::limits::Limit;

const INVALID: &str = "422, and the field is named";

pub static QUEUED: Limit = Limit::settable(
    "queue.jobs",
    100_000,
    "jobs waiting in one queue",
    "429 with Retry-After; the request changes nothing",
);
pub static OPEN_CLAIMS: Limit =
    Limit::settable("queue.claims", 10_000, "claims waiting in one partition", "not taken up until it is repeated");
pub static ATTEMPTS: Limit = Limit::fixed("queue.attempts", 3, "lost attempts of one job", "the build fails");
pub static SPEC_BYTES: Limit = Limit::fixed("build.text_bytes", SPEC_BYTES_MAX as u64, "bytes", INVALID);
pub static ARGUMENTS: Limit = Limit::fixed("build.arguments", ARGUMENTS_MAX as u64, "arguments", INVALID);
pub static VARIABLES: Limit =
    Limit::fixed("build.variables", VARIABLES_MAX as u64, "variables, and as many labels", INVALID);
pub static REPOSITORY_BYTES: Limit =
    Limit::fixed("build.repository_bytes", REPOSITORY_BYTES_MAX as u64, "bytes", INVALID);
pub static OUTPUT_BYTES: Limit = Limit::fixed("build.output_bytes", OUTPUT_BYTES_MAX as u64, "bytes", INVALID);
pub static TIME_LIMIT: Limit = Limit::fixed("build.time_limit_seconds", TIME_LIMIT_SECONDS_MAX as u64, "s", INVALID);
pub static STOP: Limit = Limit::fixed("run.stop_seconds", STOP_SECONDS_MAX as u64, "s", INVALID);
pub static HEALTH: Limit = Limit::fixed("run.health_seconds", HEALTH_SECONDS_MAX as u64, "s", INVALID);
pub static ORIGIN_BYTES: Limit = Limit::fixed("import.origin_bytes", ORIGIN_BYTES_MAX as u64, "bytes", INVALID);
pub static MESSAGE_BYTES: Limit = Limit::fixed("queue.message_bytes", MESSAGE_BYTES_MAX as u64, "bytes", "cut");
pub static RECORD_BYTES: Limit = Limit::fixed("log.record_bytes", RECORD_BYTES_MAX as u64, "bytes", "413");
pub static BATCH_BYTES: Limit = Limit::fixed(
    "log.batch_bytes",
    BATCH_BYTES_MAX as u64,
    "bytes in one transaction",
    "the commit fails, and is made smaller",
);
pub static TRANSACTION_REQUESTS: Limit = Limit::fixed(
    "runtime.transaction_requests",
    REQUESTS_MAX as u64,
    "requests",
    "the next transaction takes the rest",
);
pub static TRANSACTION_BYTES: Limit = Limit::fixed(
    "runtime.transaction_bytes",
    TRANSACTION_BYTES_SOFT_MAX as u64,
    "bytes",
    "the next transaction takes the rest",
);

/// All of them.
pub static LIMITS: &[&Limit] = &[
    &QUEUED,
    &OPEN_CLAIMS,
    &ATTEMPTS,
    &SPEC_BYTES,
    &ARGUMENTS,
    &VARIABLES,
    &REPOSITORY_BYTES,
    &OUTPUT_BYTES,
    &TIME_LIMIT,
    &STOP,
    &HEALTH,
    &ORIGIN_BYTES,
    &MESSAGE_BYTES,
    &RECORD_BYTES,
    &BATCH_BYTES,
    &TRANSACTION_REQUESTS,
    &TRANSACTION_BYTES,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queues_defaults_are_the_ones_listed() {
        let config = longshore_queue::Config::default();
        let held = [config.queued_max, config.claims_max, config.attempts_max].map(u64::from);
        assert_eq!(held, [QUEUED.default, OPEN_CLAIMS.default, ATTEMPTS.default]);
    }
}
