//! Where a sender's reports stand: later boots first, then later sequences.

use longshore_planted::{Bug, planted};
use longshore_schemas::{
    RequestId, Timestamp,
    events::{Event, ReportOrder, Request},
};

/// The boot of a sender that starts: later than every one before, and, should their number be lost, most likely later still.
pub fn next_boot(last: u64, now: Timestamp) -> u64 {
    if planted(Bug::ReuseBoot) && last > 0 {
        return last;
    }
    last.saturating_add(1).max(u64::try_from(now.millis()).unwrap_or(0))
}

/// A report in its envelope, with its place in its sender's order, which is also its id.
pub fn report<E: Event>(sender: &str, boot: u64, sequence: u64, at: Timestamp, event: E) -> Request<E> {
    let id: RequestId = format!("{sender}/{boot}/{sequence}").parse().expect("names and numbers are token characters");
    let report = Some(ReportOrder { sender: sender.to_owned(), boot, sequence });
    Request { id, at, actor: sender.to_owned(), trace: None, report, event }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boots_only_grow_whatever_the_clock_says() {
        for (last, now, next) in [(0, 50, 50), (50, 20, 51), (50, 51, 51), (50, 90, 90), (7, -5, 8)] {
            assert_eq!(next_boot(last, Timestamp(now)), next, "after {last} at {now}");
        }
    }
}
