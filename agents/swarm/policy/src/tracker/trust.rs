//! Whom nodes are kept away from, and who is believed about it.
//!
//! ```text
//! accusation ─▶ the accuser itself is not sent there any more, for a while            (needs no belief)
//!            └▶ is it believed? ─▶ enough different accusers? ─▶ nobody is sent there, for a while
//! ```
//!
//! A node says of a peer that it *lied* (its bytes were not the pack's) or that it *failed* (it was silent, too slow, away, or
//! had not what it was said to have). Either may be wrong: the accuser may lie, or its own disk or network may be broken. So:
//!
//! - One node alone keeps nobody but itself away from a peer. It takes two of them for a lie, three for a failure.
//! - A node is believed about a few peers only: three liars in ten minutes, eight failures in one. What it says of others
//!   counts for itself alone. A node that is banned as a liar is not believed at all.
//! - Nor does it get all it wants from the bucket: beyond sixteen peers that it shuns, it is sent to those of which it complains.
//! - An accusation counts as long as the ban that it may lead to. Therefore `k` nodes that accuse falsely, and together,
//!   keep at most `3 k / 2` peers banned at any time; one alone, none.
//! - Every ban ends by itself. A node whose disk had a fault comes back; one that still lies fools two nodes with a few packs
//!   each, which neither keeps, and is banned again.
//!
//! What is known of a node is known by its name, which its certificate proves: connecting anew lifts no ban.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use longshore_schemas::NodeId;

use crate::Time;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    Lied,
    Failed,
}

impl Fault {
    /// Different nodes that must say so before nobody is sent there.
    fn accusers(self) -> usize {
        match self {
            Self::Lied => 2,
            Self::Failed => 3,
        }
    }

    /// Peers about which one node is believed at a time.
    fn believed_max(self) -> usize {
        match self {
            Self::Lied => 3,
            Self::Failed => 8,
        }
    }

    /// How long an accusation counts, and how long nobody is sent to a peer.
    fn lease(self) -> Duration {
        match self {
            Self::Lied => Duration::from_secs(600),
            Self::Failed => Duration::from_secs(60),
        }
    }

    /// How long the accuser itself is not sent there.
    pub(super) fn shunned_for(self) -> Duration {
        match self {
            Self::Lied => Duration::from_secs(600),
            Self::Failed => Duration::from_secs(30),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Trust {
    /// Who accuses each node, and until when that counts.
    against: BTreeMap<(NodeId, Fault), BTreeMap<NodeId, Time>>,
    /// Whom each node is believed to accuse, and until when.
    spent: BTreeMap<(NodeId, Fault), BTreeMap<NodeId, Time>>,
    kept_away: BTreeMap<NodeId, (Fault, Time)>,
    swept_at: Time,
}

impl Trust {
    /// Takes note of an accusation; `true` if nobody is to be sent to the accused from now on.
    pub(super) fn accuse(&mut self, accuser: &NodeId, accused: &NodeId, fault: Fault, now: Time) -> bool {
        self.sweep(now);
        let accuser_lied = self.kept_away.get(accuser).is_some_and(|(fault, _)| *fault == Fault::Lied);
        if accuser_lied || self.kept_away.get(accused).is_some_and(|(known, _)| *known <= fault) {
            return false;
        }
        let until = now + fault.lease();
        let spent = self.spent.entry((accuser.clone(), fault)).or_default();
        spent.retain(|_, until| *until > now);
        if !spent.contains_key(accused) && spent.len() >= fault.believed_max() {
            return false;
        }
        spent.insert(accused.clone(), until);
        let against = self.against.entry((accused.clone(), fault)).or_default();
        against.retain(|_, until| *until > now);
        against.insert(accuser.clone(), until);
        if against.len() < fault.accusers() {
            return false;
        }
        self.against.remove(&(accused.clone(), fault));
        self.kept_away.insert(accused.clone(), (fault, until));
        true
    }

    pub(super) fn keeps_away_from(&self, node: &NodeId) -> bool {
        self.kept_away.contains_key(node)
    }

    /// Those to whom nodes may be sent again.
    pub(super) fn ended(&mut self, now: Time) -> BTreeSet<NodeId> {
        let over = self.kept_away.extract_if(.., |_, (_, until)| *until <= now);
        over.map(|(node, _)| node).collect()
    }

    /// When the next of them will be.
    pub(super) fn next_end(&self) -> Option<Time> {
        self.kept_away.values().map(|(_, until)| *until).min()
    }

    pub(super) fn count(&self, fault: Fault) -> usize {
        self.kept_away.values().filter(|(known, _)| *known == fault).count()
    }

    /// Forgets what does not count any more, of nodes that are gone too.
    fn sweep(&mut self, now: Time) {
        if self.swept_at + Fault::Failed.lease() > now {
            return;
        }
        self.swept_at = now;
        for table in [&mut self.against, &mut self.spent] {
            table.retain(|_, entries| {
                entries.retain(|_, until| *until > now);
                !entries.is_empty()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        name.parse().expect("valid")
    }

    fn at(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    /// Each line: when, who, whom, of what, and whether nobody is sent there from then on.
    #[test]
    fn who_is_believed() {
        use Fault::{Failed, Lied};
        let script = [
            (0, "a", "x", Lied, false),
            (1, "a", "x", Lied, false),
            (2, "b", "x", Lied, true),
            (3, "c", "x", Lied, false), // It is banned already.
            (4, "x", "a", Lied, false),
            (5, "b", "a", Lied, false), // What a liar said of it does not count.
            (6, "a", "y", Lied, false),
            (607, "b", "y", Lied, false), // What `a` said is too long ago.
            (608, "d", "y", Lied, true),
            (700, "a", "z", Failed, false),
            (701, "b", "z", Failed, false),
            (702, "c", "z", Failed, true),
            (703, "a", "z", Lied, false), // A lie weighs more than the failure for which it rests.
            (704, "c", "z", Lied, true),
        ];
        let mut trust = Trust::default();
        for (seconds, accuser, accused, fault, expected) in script {
            trust.ended(at(seconds));
            let kept_away = trust.accuse(&node(accuser), &node(accused), fault, at(seconds));
            assert_eq!(kept_away, expected, "{seconds}: {accuser} says that {accused} {fault:?}");
        }
    }

    #[test]
    fn one_malicious_node_bans_nobody_and_two_of_them_few() {
        let mut trust = Trust::default();
        let mut banned_at_once_max = 0;
        for minute in 0..120 {
            trust.ended(at(minute * 60));
            for victim in 0..100 {
                for accuser in ["m1", "m2"] {
                    trust.accuse(&node(accuser), &node(&format!("v{victim}")), Fault::Lied, at(minute * 60));
                }
                assert!(!trust.accuse(&node("m1"), &node("alone"), Fault::Lied, at(minute * 60)));
            }
            banned_at_once_max = banned_at_once_max.max(trust.count(Fault::Lied));
        }
        assert!((1..=3).contains(&banned_at_once_max), "{banned_at_once_max} of 100 banned by two malicious nodes");
    }

    #[test]
    fn a_ban_ends_and_nothing_is_remembered_for_ever() {
        let mut trust = Trust::default();
        for accuser in ["a", "b"] {
            trust.accuse(&node(accuser), &node("x"), Fault::Lied, at(0));
        }
        assert_eq!(trust.next_end(), Some(at(600)));
        assert!(trust.ended(at(599)).is_empty() && trust.keeps_away_from(&node("x")));
        assert_eq!(trust.ended(at(600)), BTreeSet::from([node("x")]));
        assert!(!trust.keeps_away_from(&node("x")));
        trust.accuse(&node("c"), &node("y"), Fault::Failed, at(1_000));
        trust.accuse(&node("c"), &node("y"), Fault::Failed, at(2_000));
        assert_eq!((trust.against.len(), trust.spent.len()), (1, 1));
    }
}
