//! The tracker's promises, event by event.

use std::{collections::BTreeMap, time::Duration};

use longshore_schemas::{ArtifactId, NodeId, PackId};
use longshore_swarm_policy::{
    Time, Tracker,
    tracker::{Action, Config, Event},
};

/// A tracker and its clock; what it says is written down as text.
struct Region {
    tracker: Tracker,
    now: Time,
}

fn node(name: &str) -> NodeId {
    name.parse().expect("valid")
}

fn artifact() -> ArtifactId {
    ArtifactId::of(b"artifact")
}

fn packs(numbers: &[u8]) -> Vec<PackId> {
    numbers.iter().map(|n| PackId::of(&[*n])).collect()
}

impl Region {
    /// Long enough after its start to lend tickets.
    fn new(nodes: &[&str]) -> Self {
        Self::with(Config { gather: Duration::ZERO, node_tickets_max: 4, ..Config::default() }, nodes)
    }

    fn with(config: Config, nodes: &[&str]) -> Self {
        let mut region = Self { tracker: Tracker::new(config), now: Time::ZERO };
        for name in nodes {
            region.on(Event::Joined {
                node: node(name),
                address: format!("{name}:1"),
                rack: "r".parse().expect("valid"),
            });
        }
        region.pass(10_000);
        region
    }

    fn on(&mut self, event: Event) -> Vec<String> {
        self.tracker.on(event, self.now).into_iter().map(shown).collect()
    }

    fn want(&mut self, name: &str, numbers: &[u8]) -> Vec<String> {
        self.on(Event::Wanted { node: node(name), artifact: artifact(), packs: packs(numbers) })
    }

    fn have(&mut self, name: &str, numbers: &[u8]) -> Vec<String> {
        self.on(Event::Have { node: node(name), artifact: artifact(), packs: packs(numbers) })
    }

    fn have_more(&mut self, name: &str, number: u8) -> Vec<String> {
        self.on(Event::HaveMore { node: node(name), artifact: artifact(), packs: packs(&[number]) })
    }

    fn ticket_done(&mut self, name: &str, number: u8, ok: bool) -> Vec<String> {
        let pack = PackId::of(&[number]);
        self.on(Event::TicketDone { node: node(name), artifact: artifact(), pack, ok })
    }

    /// Lets time pass, waking the tracker whenever it wants to be.
    fn pass(&mut self, millis: u64) -> Vec<String> {
        let end = self.now + Duration::from_millis(millis);
        let mut said = Vec::new();
        while let Some(wake) = self.tracker.next_wake().filter(|wake| *wake <= end) {
            self.now = self.now.max(wake);
            said.extend(self.on(Event::Tick));
            assert!(self.tracker.next_wake().is_none_or(|next| next > self.now), "it would spin");
        }
        self.now = end;
        said
    }
}

fn shown(action: Action) -> String {
    let number = |pack: &PackId| (0..=255u8).find(|n| PackId::of(&[*n]) == *pack).expect("a known pack").to_string();
    let list = |packs: &[PackId]| {
        let mut numbers: Vec<String> = packs.iter().map(number).collect();
        numbers.sort();
        numbers.join(",")
    };
    match action {
        Action::Ban { node } => format!("ban {node}"),
        Action::Sources { node, artifact: of, peers, tickets } => {
            assert_eq!(of, artifact());
            let mut said = vec![format!("{node}:")];
            said.extend(peers.iter().map(|peer| format!("{} has {}", peer.node, list(&peer.packs))));
            if !tickets.is_empty() {
                said.push(format!("ticket {}", list(&tickets)));
            }
            said.join(" ")
        }
    }
}

#[test]
fn a_lone_node_gets_tickets_for_everything_a_few_at_a_time() {
    let mut region = Region::new(&["a"]);
    let first = region.want("a", &[1, 2, 3, 4, 5]);
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].matches(',').count(), 3, "four tickets: {first:?}");
    let lent: Vec<u8> = (1..=5).filter(|n| first[0].contains(&n.to_string())).collect();
    assert!(region.pass(1_000).is_empty());
    let last = (1..=5).find(|n| !lent.contains(n)).expect("one is left");
    assert_eq!(region.ticket_done("a", lent[0], true), [format!("a: ticket {last}")]);
}

#[test]
fn those_who_come_first_are_gathered_once_for_all_packs_of_an_artifact() {
    let mut region = Region::with(Config::default(), &["a", "b"]);
    let mut told = [region.want("a", &[0]), region.want("b", &[0])].concat();
    told.extend(region.pass(190));
    assert!(!told.iter().any(|told| told.contains("ticket")), "others may come: {told:?}");
    assert_eq!(region.pass(20).iter().filter(|told| told.contains("ticket")).count(), 1);
    region.pass(1_000);
    // The plan stands: for the packs that come next, its first need not wait for anybody, and nobody else has a ticket.
    let of = |told: &[String], name: &str| {
        let lent = told.iter().filter_map(|told| told.strip_prefix(name)?.rsplit_once("ticket "));
        lent.flat_map(|(_, packs)| packs.split(',').map(str::to_owned).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let next: Vec<u8> = (1..=32).collect();
    let told = region.want("b", &next);
    let of_b = of(&told, "b:");
    assert!(!of_b.is_empty() && of_b.len() < next.len(), "{told:?}");
    let mut told = region.want("a", &next);
    told.extend(region.pass(60));
    assert_eq!(of(&told, "a:").len() + of(&told, "b:").len() + of_b.len(), next.len(), "{told:?}");
}

#[test]
fn a_pack_has_one_ticket_and_whoever_gets_it_is_told() {
    let mut region = Region::new(&["a", "b"]);
    assert_eq!(region.want("a", &[1]), ["a: ticket 1"]);
    let mut told = region.want("b", &[1]);
    told.extend(region.pass(300));
    assert_eq!(told, ["b: a has 1"], "by the plan: it will");
    region.have_more("a", 1);
    assert_eq!(region.pass(20_000), [""; 0]);
    region.ticket_done("a", 1, true);
    assert_eq!(region.pass(60_000), [""; 0]);
    let mut told = region.want("b", &[1]);
    told.extend(region.pass(600));
    assert_eq!(told, ["b: a has 1"], "nobody else is ahead of it");
}

#[test]
fn a_ticket_that_is_over_goes_to_another() {
    let mut region = Region::new(&["a", "b"]);
    region.want("a", &[1]);
    region.want("b", &[1]);
    region.pass(300);
    assert_eq!(region.pass(9_000), [""; 0]);
    assert_eq!(region.pass(1_000), ["a: b has 1", "b: ticket 1"], "who did not read it is behind now");
    region.ticket_done("b", 1, false);
    assert_eq!(region.pass(2_000).len(), 1, "and is lent again when it comes back");
}

#[test]
fn a_node_that_leaves_takes_its_ticket_and_its_packs_along() {
    let mut region = Region::new(&["a", "b", "c"]);
    region.have("c", &[2]);
    region.want("a", &[1]);
    region.pass(500);
    assert_eq!(region.want("b", &[1, 2]), ["b: a has 1 c has 2"]);
    region.on(Event::Left { node: node("a") });
    assert_eq!(region.pass(300), ["b: ticket 1"]);
    region.on(Event::Left { node: node("c") });
    assert_eq!(region.pass(1_000), [""; 0], "it may be about to come back");
    assert_eq!(region.pass(2_000), ["b: ticket 2"]);
}

#[test]
fn holders_that_do_not_help_are_not_waited_for() {
    let mut region = Region::new(&["a", "b"]);
    region.have("a", &[1]);
    region.pass(300);
    assert_eq!(region.want("b", &[1]), ["b: a has 1"]);
    let mut said = Vec::new();
    for _ in 0..6 {
        said.extend(region.pass(3_000));
        said.extend(region.want("b", &[1]));
    }
    assert!(said.iter().any(|said| said.ends_with("ticket 1")), "{said:?}");
}

#[test]
fn a_level_replaces_what_was_said_before() {
    let mut region = Region::new(&["a", "b"]);
    region.have("a", &[1, 2]);
    region.pass(300);
    region.have("a", &[2]);
    region.pass(3_000);
    assert_eq!(region.want("b", &[1, 2]), ["b: a has 2 ticket 1"]);
}

#[test]
fn two_accusers_ban_and_strangers_cannot_accuse() {
    let mut region = Region::new(&["liar", "a", "b", "c"]);
    region.have("liar", &[1, 2]);
    region.pass(300);
    let lied = |name: &str| Event::PeerLied { node: node(name), peer: node("liar"), pack: PackId::of(&[1]) };
    assert_eq!(region.on(lied("c")), [""; 0]);
    region.want("a", &[1, 2]);
    region.pass(300);
    region.want("b", &[1, 2]);
    region.pass(300);
    // It was sent to `a`, which did not help.
    region.want("b", &[1, 2]);
    region.pass(600);
    let mut said = region.on(lied("a"));
    said.extend(region.on(lied("a")));
    assert!(!said.iter().any(|said| said.starts_with("ban")), "{said:?}");
    let said = region.on(lied("b"));
    assert!(said.contains(&"ban liar".to_owned()), "{said:?}");
    let said = region.pass(5_000);
    assert!(
        said.iter().all(|said| !said.contains("liar")) && said.iter().any(|said| said.contains("ticket")),
        "{said:?}"
    );
}

fn accuse(region: &mut Region, accuser: &str, lied: bool) -> Vec<String> {
    let (node, peer, pack) = (node(accuser), node("bad"), PackId::of(&[1]));
    region.on(if lied { Event::PeerLied { node, peer, pack } } else { Event::PeerFailed { node, peer, pack } })
}

/// Nodes that want pack 1 and were sent to `bad`, which says that it has it.
fn sent_to_bad(wanters: &[&str]) -> Region {
    let mut region = Region::new(&["bad", "good", "a", "b", "c"]);
    region.have("bad", &[1]);
    region.pass(300);
    for wanter in wanters {
        let mut said = region.want(wanter, &[1]);
        // Those who came first get it for the others, who have to complain; and not all are sent there at once.
        while !said.iter().any(|said| said.starts_with(&format!("{wanter}: bad has 1"))) {
            assert!(region.now < Duration::from_secs(60), "{wanter} is not sent there: {said:?}");
            said = region.want(wanter, &[1]);
            said.extend(region.pass(1_000));
        }
    }
    region
}

#[test]
fn a_ban_ends_and_connecting_anew_does_not_lift_it() {
    let mut region = sent_to_bad(&["a", "b"]);
    accuse(&mut region, "a", true);
    assert!(accuse(&mut region, "b", true).contains(&"ban bad".to_owned()));
    region.on(Event::Left { node: node("bad") });
    region.on(Event::Joined { node: node("bad"), address: "bad:2".to_owned(), rack: "r".parse().expect("valid") });
    region.have("bad", &[1, 2]);
    let mut said = region.want("c", &[2]);
    said.extend(region.pass(60_000));
    assert!(!said.iter().any(|said| said.contains("bad")), "{said:?}");
    assert_eq!(region.tracker.counts().banned, 1);
    let said = region.pass(600_000);
    assert!(said.iter().any(|said| said.contains("bad has")), "it has another chance: {said:?}");
    assert_eq!(region.tracker.counts().banned, 0);
}

#[test]
fn a_peer_that_is_found_failing_brings_a_ticket_and_three_of_them_keep_all_others_away() {
    let mut region = sent_to_bad(&["a", "b", "c"]);
    let mut said = accuse(&mut region, "c", false);
    said.extend(region.pass(500));
    let given = said.iter().filter(|said| said.ends_with("ticket 1")).count();
    assert_eq!(
        (given, said.len()),
        (1, 1),
        "at once, to the first of the plan, from whom it comes to the others: {said:?}"
    );
    assert_eq!(region.tracker.counts().resting, 0, "one word bans nobody");
    accuse(&mut region, "a", false);
    accuse(&mut region, "b", false);
    assert_eq!((region.tracker.counts().resting, region.tracker.counts().banned), (1, 0));
    region.pass(500);
    let mut said = region.want("good", &[1]);
    said.extend(region.pass(20_000));
    assert!(!said.iter().any(|said| said.contains("bad")), "{said:?}");
    let said = region.pass(60_000);
    assert!(said.iter().any(|said| said.contains("bad has 1")), "it has another chance: {said:?}");
}

/// Nodes that claim everything and give nothing must not keep a region from the bucket, one pack and one of them after the other.
#[test]
fn once_one_who_never_wanted_anything_gives_nothing_no_such_node_is_relied_on() {
    let mut region = Region::new(&["bad", "worse", "a", "b"]);
    region.have("bad", &[1, 2, 3, 4]);
    region.have("worse", &[1, 2, 3, 4]);
    let mut said = region.want("a", &[1, 2, 3, 4]);
    said.extend(region.pass(500));
    assert!(said.iter().all(|said| !said.contains("ticket")) && !said.is_empty(), "they have all: {said:?}");
    let peer = if said[0].contains("bad") { "bad" } else { "worse" };
    let fault = Event::PeerFailed { node: node("a"), peer: node(peer), pack: PackId::of(&[1]) };
    let mut said = region.on(fault);
    said.extend(region.pass(500));
    for pack in 1..=4 {
        assert!(said.iter().any(|said| said.contains("ticket") && said.contains(&pack.to_string())), "{said:?}");
    }
}

/// Those who have the first of a pack may all wait for one who is gone.
#[test]
fn if_nobody_is_known_to_have_all_of_a_pack_somebody_reads_it() {
    let mut region = Region::new(&["a", "b", "c"]);
    let mut said = Vec::new();
    for name in ["a", "b", "c"] {
        said.extend(region.want(name, &[1]));
    }
    said.extend(region.pass(300));
    let reader = said.iter().find_map(|said| said.strip_suffix(": ticket 1")).expect("one reads it").to_owned();
    for name in ["a", "b", "c"] {
        region.have_more(name, 1);
    }
    assert_eq!(region.pass(3_000), [""; 0], "it comes");
    let mut said = region.on(Event::Left { node: node(&reader) });
    said.extend(region.pass(500));
    let next = said.iter().find_map(|said| said.strip_suffix(": ticket 1")).expect("another reads the rest").to_owned();
    assert_ne!(next, reader);
    region.ticket_done(&next, 1, true);
    let said = region.pass(20_000);
    assert!(said.iter().all(|said| !said.contains("ticket")), "that one has all of it: {said:?}");
}

/// All have a place by the pack that they want first. Then they want more, one after the other, and whoever has a ticket gets some of that pack at
/// once. Answers of whom each node was told last, by node and pack.
fn told_last(names: &[&str], millis_between: u64) -> BTreeMap<(String, String), String> {
    let mut region = Region::with(Config::default(), names);
    for name in names {
        region.want(name, &[0]);
    }
    region.pass(1_000);
    let mut told = BTreeMap::new();
    let mut hear = |said: Vec<String>| {
        let mut lent = Vec::new();
        for line in said {
            let (name, rest) = line.split_once(": ").expect("a node and what it is told");
            let words: Vec<&str> = rest.split(' ').collect();
            for peer in words.windows(3).filter(|words| words[1] == "has") {
                let packs = peer[2].split(',').map(|pack| ((name.to_owned(), pack.to_owned()), peer[0].to_owned()));
                told.extend(packs);
            }
            if let Some((_, packs)) = rest.split_once("ticket ") {
                lent.extend(packs.split(',').map(|pack| (name.to_owned(), pack.parse::<u8>().expect("a number"))));
            }
        }
        lent
    };
    for name in names {
        let said = [region.want(name, &(1..=16).collect::<Vec<_>>()), region.pass(millis_between)].concat();
        for (reader, pack) in hear(said) {
            let said = region.have_more(&reader, pack);
            hear(said);
        }
    }
    hear(region.pass(100));
    told
}

#[test]
fn who_asks_before_the_one_ahead_gets_it_from_that_one_all_the_same() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let (at_once, in_turn) = (told_last(&names, 0), told_last(&names, 30));
    assert!(at_once.len() > 60, "{at_once:?}");
    for (key, peer) in &at_once {
        assert_eq!(in_turn.get(key), Some(peer), "{key:?}");
    }
}

#[test]
fn a_node_that_wants_nothing_of_a_peer_cannot_accuse_it() {
    let mut region = sent_to_bad(&["a", "b"]);
    for name in ["a", "b"] {
        region.on(Event::Done { node: node(name), artifact: artifact() });
    }
    for name in ["a", "b"] {
        assert!(!accuse(&mut region, name, true).contains(&"ban bad".to_owned()));
    }
    assert_eq!(region.tracker.counts().banned, 0);
}

#[test]
fn nothing_is_left_when_all_have_gone() {
    let mut region = Region::new(&["a", "b"]);
    region.have("a", &[1, 2]);
    region.want("b", &[1, 3]);
    region.on(Event::Done { node: node("b"), artifact: artifact() });
    region.on(Event::Left { node: node("a") });
    region.on(Event::Left { node: node("b") });
    region.pass(60_000);
    assert_eq!(region.tracker.counts(), longshore_swarm_policy::tracker::Counts::default());
    assert_eq!(region.tracker.next_wake(), None);
}
