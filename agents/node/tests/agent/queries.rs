//! What people ask of the node.

use longshore_schemas::{
    Timestamp,
    events::{LOG_TAIL_BYTES_MAX, LogWanted},
    stream::Answer,
};

use crate::{
    node::goal,
    published,
    region::{Region, goal_key, provenance_key},
    running,
};

fn wanted(node: &str, region: &str, service: &str) -> LogWanted {
    let id = |text: &str| text.parse().expect("valid");
    LogWanted {
        region: region.parse().expect("valid"),
        node: id(node),
        service: service.parse().expect("valid"),
        bytes: 1_000,
    }
}

async fn answer(region: &Region, query: &str) -> Answer {
    let query = query.parse().expect("valid");
    region.wait_for("answer", |heard| heard.answers.get(&query).cloned()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_log_is_told_to_who_may_ask_and_its_end_alone() {
    let (region, node, _) = running("one").await;
    let said = answer_to(&region, "q-1", wanted("n-1", "eu", "web")).await;
    let Answer::Log(text) = said else { panic!("{said:?}") };
    assert!(text.contains("[longshore] begins: "), "{text}");

    // Nobody who may not ask gets an answer; who may, gets one after them.
    region.ask("stranger", wanted("n-1", "eu", "web"), &provenance_key());
    region.ask("other-node", wanted("n-2", "eu", "web"), &goal_key());
    region.ask("other-region", wanted("n-1", "us", "web"), &goal_key());
    region.ask("q-1", wanted("n-1", "eu", "web"), &goal_key());
    let said = answer_to(&region, "q-2", wanted("n-1", "eu", "mail")).await;
    assert_eq!(said, Answer::None("node n-1 has nothing of mail".to_owned()));

    // What was kept for an hour is no longer wanted.
    let an_hour_ago = Timestamp(longshore_service::now().millis() - 3_600_000);
    region.ask_at(an_hour_ago, "q-3", wanted("n-1", "eu", "web"), &goal_key());
    let said = answer(&region, "q-3").await;
    assert!(matches!(&said, Answer::None(reason) if reason.contains("the clock of node n-1")), "{said:?}");

    // A service that says much, and nothing that is text.
    let loud = published(&region, "loud", "head -c 3000000 /dev/urandom; sleep 1000").await;
    region.push(goal("loud", 1, Some(loud)));
    let whole = LogWanted { bytes: u32::MAX, ..wanted("n-1", "eu", "loud") };
    for number in 0.. {
        let said = answer_to(&region, &format!("loud-{number}"), whole.clone()).await;
        if let Answer::Log(text) = said
            && text.len() >= LOG_TAIL_BYTES_MAX as usize / 2
        {
            break;
        }
    }
    let asked = region.wait_for("all answers", |heard| Some(heard.answers.keys().cloned().collect::<Vec<_>>())).await;
    let asked: Vec<&str> =
        asked.iter().map(|query| query.as_str()).filter(|query| !query.starts_with("loud")).collect();
    assert_eq!(asked, ["q-1", "q-2", "q-3"]);
    drop(node);
}

async fn answer_to(region: &Region, query: &str, wanted: LogWanted) -> Answer {
    region.ask(query, wanted, &goal_key());
    answer(region, query).await
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_what_the_machine_was_started_with() {
    let (region, mut node, _) = running("one").await;
    node.stop_agent();
    node.start_agent(&["--label", "gpu=a100", "--label", "disk=nvme"]);
    let labels = region.wait_for("second hello", |heard| heard.hellos.get(1).map(|hello| hello.labels.clone())).await;
    let labels: Vec<(&str, &str)> = labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(labels, [("disk", "nvme"), ("gpu", "a100")]);
}
