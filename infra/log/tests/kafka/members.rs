//! Members that come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use longshore_kafka::Cluster;
use longshore_log::{Log, Membership, Ownership, TopicPartition, kafka::KafkaLog};
use tokio::sync::oneshot;

use crate::{TOPIC, config, shared, soon};

const PARTITIONS: u32 = 8;

/// Who owns each partition, as the members have been told.
type Owners = Arc<Mutex<BTreeMap<u32, usize>>>;

/// Follows its membership until it is told to leave, and leaves with all that it has.
async fn member(log: Arc<KafkaLog>, number: usize, owners: Owners, leave: oneshot::Receiver<()>) {
    let mut membership = log.join("group", TOPIC).await.unwrap();
    tokio::pin!(leave);
    // Those that may have others by now: it leaves them to those, and they are told of again.
    let mut unsure = BTreeSet::new();
    loop {
        let change = tokio::select! {
            change = membership.next() => change.unwrap(),
            _ = &mut leave => break,
        };
        let mut owners = owners.lock().unwrap();
        match change {
            Ownership::Assigned(partitions) => {
                for of in partitions {
                    unsure.remove(&of.partition);
                    let before = owners.insert(of.partition, number);
                    assert_eq!(before, None, "partition {} has two owners: {before:?} and {number}", of.partition);
                }
            }
            Ownership::Revoked(partitions) => {
                for of in partitions.iter().filter(|of| !unsure.remove(&of.partition)) {
                    assert_eq!(owners.remove(&of.partition), Some(number), "revoked what was not assigned");
                }
            }
            Ownership::Unsure(partitions) => {
                for of in partitions {
                    owners.remove(&of.partition);
                    unsure.insert(of.partition);
                }
            }
        }
    }
    // It stops with everything before it leaves.
    owners.lock().unwrap().retain(|_, owner| *owner != number);
    drop(membership);
}

/// Whatever members do, no partition has two owners, and in the end each has one.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_members_leaves_every_partition_with_one_owner() {
    let log = soon(KafkaLog::connect(config(shared().brokers(), PARTITIONS))).await.unwrap();
    let owners = Owners::default();
    let mut members = Vec::new();
    let join = |number: usize| {
        let (leave, told) = oneshot::channel();
        (tokio::spawn(member(log.clone(), number, owners.clone(), told)), leave)
    };
    for number in 0..10 {
        members.push(join(number));
        if number % 3 == 2 {
            let (task, leave) = members.remove(number % members.len());
            leave.send(()).unwrap();
            soon(task).await.unwrap();
        }
    }
    let shared_out = async {
        loop {
            let counts: Vec<usize> = {
                let owners = owners.lock().unwrap();
                let count = |number: usize| owners.values().filter(|owner| **owner == number).count();
                (0..10).map(count).filter(|count| *count > 0).collect()
            };
            if counts.iter().sum::<usize>() == PARTITIONS as usize && counts.iter().all(|count| *count <= 2) {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    soon(shared_out).await;
    for (task, leave) in members {
        assert!(!task.is_finished(), "a member has failed");
        leave.send(()).unwrap();
        soon(task).await.unwrap();
    }
    soon(log.close()).await;
}

/// Waits for a change of this kind; what it is about.
async fn hears(member: &mut dyn Membership, is_it: fn(Ownership) -> Option<Vec<TopicPartition>>) -> BTreeSet<u32> {
    let change = soon(member.next()).await.unwrap();
    let told = format!("{change:?}");
    let partitions = is_it(change).unwrap_or_else(|| panic!("{told} was not expected"));
    partitions.into_iter().map(|of| of.partition).collect()
}

/// The coordinator of a group dies with everybody's session: its members are unsure, and have the same again afterwards. None is
/// told to stop.
#[tokio::test(flavor = "multi_thread")]
async fn members_keep_what_they_had_when_their_coordinator_dies() {
    let cluster = Arc::new(Cluster::start(&longshore_kafka::Config::new(1)).unwrap());
    let log = soon(KafkaLog::connect(config(cluster.brokers(), PARTITIONS))).await.unwrap();
    let assigned = |change| match change {
        Ownership::Assigned(of) => Some(of),
        _ => None,
    };
    let unsure = |change| match change {
        Ownership::Unsure(of) => Some(of),
        _ => None,
    };
    let revoked = |change| match change {
        Ownership::Revoked(of) => Some(of),
        _ => None,
    };
    let mut first = soon(log.join("group", TOPIC)).await.unwrap();
    let all = hears(&mut *first, assigned).await;
    let mut second = soon(log.join("group", TOPIC)).await.unwrap();
    let moved = hears(&mut *first, revoked).await;
    let kept = &all - &moved;
    // Asking for the next change says that it has stopped, and the next one comes with the broker's death.
    let dies = async {
        let given = hears(&mut *second, assigned).await;
        let of_thread = cluster.clone();
        tokio::task::spawn_blocking(move || of_thread.kill(1)).await.unwrap().unwrap();
        (given, hears(&mut *second, unsure).await)
    };
    let (of_first, of_second) = tokio::join!(hears(&mut *first, unsure), dies);
    assert_eq!((of_first, of_second), (kept.clone(), (moved.clone(), moved.clone())));
    let of_thread = cluster.clone();
    tokio::task::spawn_blocking(move || of_thread.restart(1)).await.unwrap().unwrap();
    assert_eq!(hears(&mut *first, assigned).await, kept);
    assert_eq!(hears(&mut *second, assigned).await, moved);
}
