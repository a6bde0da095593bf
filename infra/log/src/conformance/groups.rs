//! Membership.

use std::collections::BTreeSet;

use super::{SINGLE, Subject, WIDE, briefly, partition, soon};
use crate::{Membership, Ownership, TopicPartition};

/// Follows a member until it owns this many partitions and hears nothing more for a moment.
async fn settle(member: &mut dyn Membership, owned: &mut BTreeSet<TopicPartition>, wanted: usize) {
    soon(async {
        while owned.len() != wanted {
            apply(member.next().await.unwrap(), owned);
        }
    })
    .await;
}

fn apply(change: Ownership, owned: &mut BTreeSet<TopicPartition>) {
    match change {
        Ownership::Assigned(partitions) => {
            for partition in partitions {
                assert!(owned.insert(partition), "assigned twice");
            }
        }
        Ownership::Revoked(partitions) => {
            for partition in partitions {
                assert!(owned.remove(&partition), "revoked what was not assigned");
            }
        }
        // Those that it keeps are assigned again.
        Ownership::Unsure(partitions) => {
            for partition in partitions {
                assert!(owned.remove(&partition), "unsure of what was not assigned");
            }
        }
    }
}

/// One member owns all; a second one gets its share only after the first gave it up; who leaves leaves all.
pub async fn members_share_and_hand_over(subject: &dyn Subject) {
    let log = subject.create().await;
    let all: BTreeSet<_> = (0..4).map(|number| partition(WIDE, number)).collect();
    let mut first = soon(log.join("group", WIDE)).await.unwrap();
    let mut of_first = BTreeSet::new();
    settle(&mut *first, &mut of_first, 4).await;
    assert_eq!(of_first, all);

    let mut second = soon(log.join("group", WIDE)).await.unwrap();
    let mut of_second = BTreeSet::new();
    assert!(briefly(second.next()).await.is_none(), "the first has given nothing up yet");
    settle(&mut *first, &mut of_first, 2).await;
    let (_, ()) = tokio::join!(briefly(first.next()), settle(&mut *second, &mut of_second, 2));
    assert!(of_first.is_disjoint(&of_second));
    assert_eq!(&of_first | &of_second, all);

    drop(first);
    settle(&mut *second, &mut of_second, 4).await;
    assert_eq!(of_second, all);
}

/// Groups, and topics within a group, know nothing of each other.
pub async fn groups_are_independent(subject: &dyn Subject) {
    let log = subject.create().await;
    let mut members = Vec::new();
    for (group, topic, partitions) in [("one", WIDE, 4), ("other", WIDE, 4), ("one", SINGLE, 1)] {
        let mut member = soon(log.join(group, topic)).await.unwrap();
        settle(&mut *member, &mut BTreeSet::new(), partitions).await;
        members.push(member);
    }
}
