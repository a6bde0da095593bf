//! A node's choices, event by event.

use std::time::Duration;

use longshore_schemas::{
    PackId,
    stream::{PeerPacks, Planned, Ticket},
};
use longshore_swarm_policy::{
    Fetch, Time,
    fetch::{Action, Config, Event, Failure, Source, WantedPack},
};

fn pack(n: u8) -> PackId {
    PackId::of(&[n])
}

fn packs(range: std::ops::Range<u8>) -> Vec<PackId> {
    range.map(pack).collect()
}

fn fetch() -> Fetch {
    Fetch::new(Config::new("me".parse().expect("valid"), "r1".parse().expect("valid")))
}

fn wanted(range: std::ops::Range<u8>) -> Event {
    Event::Wanted(range.map(|n| WantedPack { pack: pack(n), bytes: 1 }).collect())
}

fn peer(name: &str, rack: &str, packs: Vec<PackId>) -> PeerPacks {
    let (node, rack) = (name.parse().expect("valid"), rack.parse().expect("valid"));
    PeerPacks { node, address: format!("{name}:1"), rack, packs, planned: None }
}

fn sources(peers: Vec<PeerPacks>) -> Event {
    Event::Sources { peers, tickets: Vec::new() }
}

fn ticket(n: u8) -> Event {
    Event::Sources {
        peers: Vec::new(),
        tickets: vec![Ticket { pack: pack(n), bytes: 1, url: "u".to_owned(), outline: None }],
    }
}

fn failed(n: u8, from: &str, failure: Failure) -> Event {
    Event::Failed { pack: pack(n), source: Source::Peer(from.parse().expect("valid")), failure }
}

fn at(millis: u64) -> Time {
    Duration::from_millis(millis)
}

/// The peers asked, in order.
fn asked(actions: &[Action]) -> Vec<&str> {
    fn peer(action: &Action) -> Option<&str> {
        if let Action::FromPeer { peer, .. } = action { Some(peer.as_str()) } else { None }
    }
    actions.iter().filter_map(peer).collect()
}

fn asks_region(actions: &[Action]) -> usize {
    let count = |action: &Action| if let Action::AskSources { packs } = action { packs.len() } else { 0 };
    actions.iter().map(count).sum()
}

#[test]
fn everything_is_asked_for_once_and_again_only_later() {
    let mut fetch = fetch();
    assert_eq!(asks_region(&fetch.on(wanted(0..9), at(0))), 9);
    assert_eq!(fetch.on(Event::Tick, at(2_999)), []);
    assert_eq!(fetch.next_wake(), Some(at(3_000)));
    assert_eq!(asks_region(&fetch.on(Event::Tick, at(3_000))), 9);
    assert_eq!(asks_region(&fetch.on(Event::Reconnected, at(3_001))), 9, "a new region knows nothing");
}

#[test]
fn requests_are_bounded_per_peer_and_in_all() {
    let mut fetch = fetch();
    fetch.on(wanted(0..40), at(0));
    let one = fetch.on(sources(vec![peer("a", "r1", packs(0..40))]), at(1));
    assert_eq!(asked(&one), ["a"; 8]);
    let many = (0..9).map(|n| peer(&format!("p{n}"), "r2", packs(0..40))).collect();
    assert_eq!(asked(&fetch.on(sources(many), at(2))).len(), 0, "eight may wait for their first byte");
    let twice = (0..40).chain(0..40);
    let begun: Vec<Action> = twice.flat_map(|n| fetch.on(Event::Begun { pack: pack(n) }, at(3))).collect();
    assert_eq!(asked(&begun).len(), 16);
    assert_eq!((fetch.in_flight(), fetch.missing()), (24, 40));
}

#[test]
fn all_nodes_take_the_packs_in_one_order_from_the_own_rack_before_others() {
    let order_of = |name: &str| {
        let mut fetch = Fetch::new(Config::new(name.parse().expect("valid"), "r1".parse().expect("valid")));
        fetch.on(wanted(0..8), at(0));
        let peers = (0..4).map(|n| peer(&format!("p{n}"), if n % 2 == 0 { "r1" } else { "r2" }, packs(0..8)));
        let actions = fetch.on(sources(peers.collect()), at(1));
        assert_eq!(actions.len(), 8);
        assert!(asked(&actions).iter().all(|peer| ["p0", "p2"].contains(peer)), "as long as they are free");
        actions.iter().map(|action| if let Action::FromPeer { pack, .. } = action { *pack } else { panic!() }).collect()
    };
    let orders: std::collections::BTreeSet<Vec<PackId>> = (0..10).map(|n| order_of(&format!("n{n}"))).collect();
    assert_eq!(orders.len(), 1);
}

#[test]
fn a_failed_request_goes_elsewhere_and_the_peer_rests_longer_each_time() {
    let mut fetch = fetch();
    fetch.on(wanted(0..1), at(0));
    let both = || sources(vec![peer("near", "r1", packs(0..1)), peer("far", "r2", packs(0..1))]);
    assert_eq!(asked(&fetch.on(both(), at(0))), ["near"]);
    assert_eq!(asked(&fetch.on(failed(0, "near", Failure::Unreachable), at(10))), ["far"]);
    let none = fetch.on(failed(0, "far", Failure::Missing), at(20));
    assert_eq!((asked(&none).len(), asks_region(&none)), (0, 0), "the region was just asked");
    let told_again = sources(vec![peer("near", "r1", packs(0..1))]);
    assert_eq!(asked(&fetch.on(told_again, at(30))).len(), 0, "it rests");
    assert_eq!(asked(&fetch.on(Event::Tick, at(1_010))), ["near"]);
    fetch.on(failed(0, "near", Failure::Unreachable), at(1_020));
    fetch.on(sources(vec![peer("near", "r1", packs(0..1))]), at(1_030));
    assert_eq!(asked(&fetch.on(Event::Tick, at(3_019))).len(), 0);
    assert_eq!(asked(&fetch.on(Event::Tick, at(3_020))), ["near"], "two seconds this time");
}

#[test]
fn a_busy_peer_keeps_its_packs() {
    let mut fetch = fetch();
    fetch.on(wanted(0..1), at(0));
    fetch.on(sources(vec![peer("a", "r1", packs(0..1))]), at(0));
    assert_eq!(fetch.on(failed(0, "a", Failure::Busy), at(10)), []);
    assert_eq!(fetch.next_wake(), Some(at(260)));
    assert_eq!(asked(&fetch.on(Event::Tick, at(260))), ["a"]);
}

#[test]
fn whoever_is_always_busy_or_waits_itself_is_left_and_the_region_asked() {
    let mut fetch = fetch();
    fetch.on(wanted(0..2), at(0));
    fetch.on(sources(vec![peer("a", "r1", packs(0..2))]), at(0));
    for time in 1..8 {
        fetch.on(failed(0, "a", Failure::Busy), at(500 * time));
        assert_eq!(asked(&fetch.on(Event::Tick, at(500 * time + 250))), ["a"], "{time}");
    }
    assert_eq!(asks_region(&fetch.on(failed(0, "a", Failure::Busy), at(4_400))), 1);
    let other = fetch.on(failed(1, "a", Failure::Waiting), at(6_000));
    assert_eq!((asked(&other).len(), asks_region(&other)), (0, 1));
}

#[test]
fn a_ticket_ends_the_wait_at_a_peer() {
    let mut fetch = fetch();
    fetch.on(wanted(0..2), at(0));
    fetch.on(sources(vec![peer("a", "r1", packs(0..2))]), at(0));
    fetch.on(Event::Begun { pack: pack(1) }, at(1));
    for pack in 0..2 {
        // Of one there is something already: but nobody is known to have the rest.
        let taken = fetch.on(ticket(pack), at(2));
        assert!(matches!(taken[..], [Action::Drop { .. }, Action::FromBucket { .. }]), "{taken:?}");
    }
    assert_eq!(fetch.on(failed(0, "a", Failure::Unreachable), at(4)), [], "nobody waits for that any more");
    assert_eq!(fetch.in_flight(), 2);
    assert_eq!(fetch.promised().collect::<Vec<_>>(), [pack(1)]);
}

#[test]
fn a_liar_is_reported_and_never_asked_again() {
    let mut fetch = fetch();
    fetch.on(wanted(0..2), at(0));
    assert_eq!(asked(&fetch.on(sources(vec![peer("a", "r1", packs(0..2))]), at(0))).len(), 2);
    let actions = fetch.on(failed(0, "a", Failure::Lied), at(10));
    let lie = Action::ReportLie { peer: "a".parse().expect("valid"), pack: pack(0) };
    assert!(actions.contains(&lie), "{actions:?}");
    assert_eq!(asked(&fetch.on(sources(vec![peer("a", "r1", packs(0..2))]), at(4_000))).len(), 0);
    assert_eq!(fetch.in_flight(), 1, "what is under way may still come");
}

#[test]
fn tickets_are_used_once_and_given_back_if_they_are_of_no_use() {
    let mut fetch = fetch();
    fetch.on(wanted(0..2), at(0));
    assert!(matches!(fetch.on(ticket(0), at(0))[..], [Action::FromBucket { .. }]));
    assert_eq!(fetch.on(ticket(0), at(1)), [], "it is on its way by the first");
    fetch.on(sources(vec![peer("a", "r1", packs(1..2))]), at(2));
    fetch.on(Event::Begun { pack: pack(1) }, at(2));
    let given_back = |number: u8, ok: bool| [Action::TicketDone { pack: pack(number), ok }];
    assert_eq!(fetch.on(ticket(7), at(3)), given_back(7, false), "nobody wants it here");
    let stored = fetch.on(Event::Stored { pack: pack(0) }, at(4));
    assert_eq!(stored, [Action::Announce { pack: pack(0) }, Action::TicketDone { pack: pack(0), ok: true }]);
    assert_eq!(fetch.on(ticket(0), at(4)), given_back(0, true), "it is here");
    assert_eq!(fetch.on(Event::Stored { pack: pack(1) }, at(5)), [Action::Complete]);
    assert_eq!((fetch.missing(), fetch.in_flight(), fetch.next_wake()), (0, 0, None));
    assert_eq!(fetch.on(Event::Stored { pack: pack(1) }, at(6)), [], "once");
}

/// What each stripe has under way: all pass on all of them, and one that had more would take it from the others.
#[test]
fn stripes_have_as_many_requests_each_even_if_they_come_from_one_peer() {
    let mut fetch = fetch();
    fetch.on(wanted(0..64), at(0));
    let stripe = |stripe: u8| PeerPacks {
        planned: Some(Planned { stripe, at_once: false }),
        ..peer("a", "r1", packs(8 * stripe..8 * stripe + 8))
    };
    let mut under_way = [0; 8];
    let mut actions = fetch.on(sources((0..8).map(stripe).collect()), at(1));
    // The first of each comes: then there is room for one more of its stripe.
    for round in 0..3 {
        let mut begun = Vec::new();
        for action in actions.drain(..) {
            let Action::FromPeer { pack, .. } = action else { continue };
            let number = (0..64).find(|n| self::pack(*n) == pack).expect("wanted");
            under_way[usize::from(number / 8)] += 1;
            begun.push(pack);
        }
        assert_eq!(under_way, [[2; 8], [3; 8], [3; 8]][round]);
        actions.extend(begun.into_iter().flat_map(|pack| fetch.on(Event::Begun { pack }, at(2))));
    }
}

/// Of one that is told while the plan's source is not there yet, and of that one afterwards.
#[test]
fn who_has_a_place_in_the_plan_is_asked_instead_of_one_who_gave_nothing_yet() {
    let by_plan = |at_once| {
        let planned = Some(Planned { stripe: 0, at_once });
        sources(vec![PeerPacks { planned, ..peer("ahead", "r1", packs(0..1)) }])
    };
    for begun in [false, true] {
        let mut fetch = fetch();
        fetch.on(wanted(0..1), at(0));
        assert_eq!(asked(&fetch.on(sources(vec![peer("anybody", "r2", packs(0..1))]), at(1))), ["anybody"]);
        if begun {
            fetch.on(Event::Begun { pack: pack(0) }, at(2));
        }
        let actions = fetch.on(by_plan(false), at(3));
        let is_dropped = actions.contains(&Action::Drop { pack: pack(0) });
        assert_eq!((is_dropped, asked(&actions)), if begun { (false, vec![]) } else { (true, vec!["ahead"]) });
        assert_eq!(fetch.in_flight(), 1);
    }
}
