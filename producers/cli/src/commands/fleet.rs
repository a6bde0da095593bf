//! `longshore fleet`

use longshore_schemas::{
    Timestamp,
    http::{FailureView, FleetCountView, FleetView, StragglerView},
};

use super::Context;
use crate::{args::FleetArgs, error::Error, output};

pub(super) async fn show(context: &Context, args: &FleetArgs) -> Result<(), Error> {
    let view: FleetView = context.client.get(&["services", args.service.as_str(), "fleet"]).fetch().await?;
    context.show(&view, |view| text(view, output::now()))
}

fn text(view: &FleetView, now: Timestamp) -> String {
    let mut parts = vec![format!("{} nodes have run {}", view.nodes, view.service)];
    let counts = view.counts.iter().map(count).collect();
    parts.push(output::table(&["nodes", "region", "zone", "version", "artifact", "status"], counts));
    parts.extend(left_out(view.not_counted, "that are in no row"));
    if !view.failures.is_empty() {
        parts.push(String::new());
        let failures = view.failures.iter().map(failure).collect();
        parts.push(output::table(&["failed", "regions", "such as", "cause"], failures));
        parts.extend(left_out(view.not_grouped, "that failed for other causes"));
    }
    if !view.stragglers.is_empty() {
        let (shown, total) = (view.stragglers.len(), view.stragglers_total);
        let some = if shown as u64 == total { String::new() } else { format!(", of which {shown} are shown") };
        parts.push(String::new());
        parts.push(format!("{total} are lost, not healthy or behind{some}, those first that have been so for longest"));
        let rows = view.stragglers.iter().map(|straggler| row(straggler, now)).collect();
        let header = ["node", "region", "zone", "rack", "version", "artifact", "status", "since", "message"];
        parts.push(output::table(&header, rows));
    }
    parts.join("\n")
}

fn left_out(nodes: u64, how: &str) -> Option<String> {
    (nodes > 0).then(|| format!("and {nodes} nodes {how}"))
}

fn state(status: longshore_schemas::events::NodeStatus, lost: bool) -> String {
    let status = output::word(&status);
    if lost { format!("lost, was {status}") } else { status }
}

fn count(count: &FleetCountView) -> Vec<String> {
    vec![
        count.nodes.to_string(),
        count.region.to_string(),
        count.zone.to_string(),
        count.version.to_string(),
        count.artifact.map_or_else(|| "-".to_owned(), |artifact| artifact.short()),
        state(count.status, count.lost),
    ]
}

fn failure(failure: &FailureView) -> Vec<String> {
    let names = |names: Vec<String>| names.join(", ");
    vec![
        failure.nodes.to_string(),
        names(failure.regions.iter().map(ToString::to_string).collect()),
        names(failure.examples.iter().map(ToString::to_string).collect()),
        output::brief(&failure.cause),
    ]
}

fn row(straggler: &StragglerView, now: Timestamp) -> Vec<String> {
    vec![
        straggler.node.to_string(),
        straggler.region.to_string(),
        straggler.zone.to_string(),
        straggler.rack.to_string(),
        straggler.version.to_string(),
        straggler.artifact.map_or_else(|| "-".to_owned(), |artifact| artifact.short()),
        state(straggler.status, straggler.lost),
        output::ago(straggler.since, now),
        straggler.message.as_deref().map_or_else(|| "-".to_owned(), output::brief),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_is_counts_then_what_went_wrong_then_who_is_behind() {
        let version = serde_json::json!({ "revision": 2, "step": 1 });
        let view: FleetView = serde_json::from_value(serde_json::json!({
            "service": "web", "nodes": 4,
            "counts": [
                { "region": "eu", "zone": "a", "version": version, "artifact": null, "status": "Healthy", "lost": false, "nodes": 3 },
                { "region": "us", "zone": "b", "version": version, "artifact": null, "status": "Failed", "lost": true, "nodes": 1 },
            ],
            "not_counted": 0,
            "failures": [{ "cause": "exit status: #", "nodes": 1, "regions": ["us"], "examples": ["us-1"] }],
            "not_grouped": 2,
            "stragglers": [{
                "region": "us", "node": "us-1", "zone": "b", "rack": "r1", "version": version, "artifact": null,
                "status": "Failed", "lost": true, "since": "1970-01-01T00:00:10Z", "message": "exit status: 3\nit said",
            }],
            "stragglers_total": 1,
        }))
        .expect("a fleet");
        let expected = "\
4 nodes have run web
NODES  REGION  ZONE  VERSION  ARTIFACT  STATUS
3      eu      a     2.1      -         healthy
1      us      b     2.1      -         lost, was failed

FAILED  REGIONS  SUCH AS  CAUSE
1       us       us-1     exit status: #
and 2 nodes that failed for other causes

1 are lost, not healthy or behind, those first that have been so for longest
NODE  REGION  ZONE  RACK  VERSION  ARTIFACT  STATUS            SINCE     MESSAGE
us-1  us      b     r1    2.1      -         lost, was failed  20 s ago  exit status: 3…";
        assert_eq!(text(&view, Timestamp(30_000)), expected);
    }
}
