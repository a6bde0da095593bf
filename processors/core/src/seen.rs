//! Which requests were processed already: part of every processor's State, folded from the causes of its facts.
//!
//! Requests of people and services are remembered by id for as long as request topics keep them. Of the reports of a
//! sender, only the last place in its order is. A request that led to no fact is not remembered: it changed nothing, and
//! changes nothing if it comes again.

use std::time::Duration;

use longshore_schemas::{
    RequestId, Timestamp,
    events::{Cause, Event, ReportOrder, Request, Trigger},
};

use crate::{
    StateError,
    store::{Order, Store, StoreMut},
    table::{Range, Table, TableInfo},
};

const REQUESTS: Table<RequestId, Timestamp> = Table::new(240, "seen_requests");
const BY_TIME: Table<(Timestamp, RequestId), ()> = Table::new(241, "seen_requests_by_time");
const SENDERS: Table<String, (u64, u64)> = Table::new(242, "seen_senders");

/// Remembered a day longer than request topics keep a request.
const KEPT: Duration = Duration::from_secs(8 * 24 * 60 * 60);
/// Requests are forgotten with every so manieth offset: looking for them costs more than the rest of a fact.
const FORGOTTEN_EVERY: u64 = 64;
/// Forgotten at most at once, so that no fact takes long to apply; and more than are remembered meanwhile.
const FORGOTTEN_MAX: usize = 256;

pub struct Seen;

impl Seen {
    pub const TABLES: [TableInfo; 3] = [REQUESTS.info(), BY_TIME.info(), SENDERS.info()];

    /// Whether this request was processed before.
    pub fn contains<E: Event>(state: &dyn Store, request: &Request<E>) -> Result<bool, StateError> {
        match &request.report {
            Some(ReportOrder { sender, boot, sequence }) => {
                let last = SENDERS.get(state, sender)?;
                Ok(last.is_some_and(|last| (*boot, *sequence) <= last))
            }
            None => REQUESTS.contains(state, &request.id),
        }
    }

    /// Applies a fact's cause.
    pub fn evolve(state: &mut dyn StoreMut, cause: &Cause, at: Timestamp) -> Result<(), StateError> {
        let Trigger::Consumed(consumed) = &cause.trigger else { return Ok(()) };
        if cause.index > 0 {
            return Ok(());
        }
        if let Some(order) = &consumed.report {
            return SENDERS.put(state, &order.sender, &(order.boot, order.sequence));
        }
        REQUESTS.put(state, &consumed.request, &at)?;
        BY_TIME.put(state, &(at, consumed.request.clone()), &())?;
        if consumed.offset.is_multiple_of(FORGOTTEN_EVERY) { Self::forget(state, at) } else { Ok(()) }
    }

    fn forget(state: &mut dyn StoreMut, now: Timestamp) -> Result<(), StateError> {
        let horizon = Timestamp::from_millis(now.millis().saturating_sub(KEPT.as_millis() as i64));
        let range = Range::all().before(&horizon);
        for (key, ()) in BY_TIME.list(state.as_store(), &range, Order::Ascending, FORGOTTEN_MAX)? {
            REQUESTS.delete(state, &key.1);
            BY_TIME.delete(state, &key);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Memory;
    use longshore_schemas::events::{BuildRequest, CancelRequested, Consumed};

    fn request(id: &str, report: Option<ReportOrder>) -> Request<BuildRequest> {
        let event = CancelRequested { job: "q-1".parse().expect("valid") }.into();
        let id = id.parse().expect("valid");
        Request { id, at: Timestamp(0), actor: "test".into(), trace: None, report, event }
    }

    fn cause(request: &Request<BuildRequest>) -> Cause {
        cause_at(request, 0)
    }

    fn cause_at(request: &Request<BuildRequest>, offset: u64) -> Cause {
        let consumed = Consumed {
            topic: "build-requests".into(),
            partition: 0,
            offset,
            request: request.id.clone(),
            report: request.report.clone(),
        };
        Cause { index: 0, count: 1, trigger: Trigger::Consumed(consumed) }
    }

    #[test]
    fn a_request_is_remembered_for_the_retention() {
        let mut state = Memory::default();
        let first = request("a", None);
        assert!(!Seen::contains(&state, &first).expect("memory"));
        Seen::evolve(&mut state, &cause(&first), Timestamp(0)).expect("memory");
        assert!(Seen::contains(&state, &first).expect("memory"));
        let later = Timestamp(0) + KEPT + Duration::from_millis(1);
        Seen::evolve(&mut state, &cause(&request("b", None)), later).expect("memory");
        assert!(!Seen::contains(&state, &first).expect("memory"));
    }

    /// Each lives a little longer than it must; what is remembered stays bounded.
    #[test]
    fn many_requests_are_forgotten_in_time() {
        let mut state = Memory::default();
        let step = KEPT / 100;
        for n in 0..1_000_u32 {
            let request = request(&format!("r-{n}"), None);
            Seen::evolve(&mut state, &cause_at(&request, n.into()), Timestamp(0) + step * n).expect("memory");
        }
        let remembered = BY_TIME.list(&state, &Range::all(), Order::Ascending, 1_000).expect("memory").len();
        assert!((100..100 + FORGOTTEN_EVERY as usize + 2).contains(&remembered), "{remembered}");
    }

    #[test]
    fn reports_are_ordered_by_boot_and_sequence() {
        let mut state = Memory::default();
        let order = |boot, sequence| Some(ReportOrder { sender: "region-a/1".into(), boot, sequence });
        Seen::evolve(&mut state, &cause(&request("r", order(2, 7))), Timestamp(0)).expect("memory");
        for (boot, sequence, seen) in [(1, 9, true), (2, 6, true), (2, 7, true), (2, 8, false), (3, 1, false)] {
            let seen_now = Seen::contains(&state, &request("r", order(boot, sequence))).expect("memory");
            assert_eq!(seen_now, seen, "{boot}/{sequence}");
        }
    }
}
