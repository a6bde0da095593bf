//! Members that come and go.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use longshore_log::{Log, Ownership, kafka::KafkaLog};
use tokio::sync::oneshot;

use crate::{TOPIC, config, shared, soon};

const PARTITIONS: u32 = 8;

/// Who owns each partition, as the members have been told.
type Owners = Arc<Mutex<BTreeMap<u32, usize>>>;

/// Follows its membership until it is told to leave, and leaves with all that it has.
async fn member(log: Arc<KafkaLog>, number: usize, owners: Owners, leave: oneshot::Receiver<()>) {
    let mut membership = log.join("group", TOPIC).await.unwrap();
    tokio::pin!(leave);
    loop {
        let change = tokio::select! {
            change = membership.next() => change.unwrap(),
            _ = &mut leave => break,
        };
        let mut owners = owners.lock().unwrap();
        match change {
            Ownership::Assigned(partitions) => {
                for of in partitions {
                    let before = owners.insert(of.partition, number);
                    assert_eq!(before, None, "partition {} has two owners: {before:?} and {number}", of.partition);
                }
            }
            Ownership::Revoked(partitions) => {
                for of in partitions {
                    assert_eq!(owners.remove(&of.partition), Some(number), "revoked what was not assigned");
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
