//! `longshore nodes`

use longshore_schemas::{
    ServiceName, Timestamp,
    http::{NodeQuery, NodeServiceView, NodeView, Page},
};

use super::Context;
use crate::{args::NodesArgs, error::Error, output};

pub(super) async fn list(context: &Context, args: NodesArgs) -> Result<(), Error> {
    let service = args.service.clone();
    let conditions = (!args.conditions.is_empty()).then(|| args.conditions.join(","));
    let (limit, is_filtered) = (Some(args.limit), conditions.is_some());
    let query = NodeQuery { region: args.region, service: args.service, conditions, limit, after: args.after };
    let page: Page<NodeView> = context.client.get(&["nodes"]).query(&query).fetch().await?;
    context.show(&page, |page| {
        if is_filtered && page.items.is_empty() {
            return "no such node".to_owned();
        }
        table(&page.items, service.as_ref(), output::now())
    })?;
    output::more(page.next.as_ref());
    Ok(())
}

/// A row for each service of each node; only those of one service, if that was asked for.
pub(super) fn table(nodes: &[NodeView], service: Option<&ServiceName>, now: Timestamp) -> String {
    if nodes.is_empty() {
        return match service {
            Some(service) => format!("no node runs {service}; `longshore status {service}` says what is wanted"),
            None => "no nodes; `longshore-node run` on a machine makes it one".to_owned(),
        };
    }
    let mut rows = Vec::new();
    for node in nodes {
        let state = if node.lost { "lost" } else { "here" };
        let place = [node.node.as_str(), node.region.as_str(), node.zone.as_str(), node.rack.as_str(), state];
        let mut row = |columns: [String; 6]| rows.push(place.map(str::to_owned).into_iter().chain(columns).collect());
        let reported = output::ago(node.seen_at, now);
        if node.services.is_empty() {
            row([dash(), dash(), dash(), dash(), reported, dash()]);
            continue;
        }
        for view in node.services.iter().filter(|view| service.is_none_or(|service| view.service == *service)) {
            row(service_columns(view, node.lost, &reported));
        }
    }
    let header =
        ["node", "region", "zone", "rack", "state", "service", "artifact", "status", "port", "reported", "message"];
    output::table(&header, rows)
}

fn service_columns(view: &NodeServiceView, is_lost: bool, reported: &str) -> [String; 6] {
    let status = output::word(&view.status);
    [
        format!("{} {}", view.service, view.version),
        view.artifact.map_or_else(dash, |artifact| artifact.short()),
        if is_lost { format!("was {status}") } else { status },
        view.port.map_or_else(dash, |port| port.to_string()),
        reported.to_owned(),
        view.message.as_deref().map_or_else(dash, output::brief),
    ]
}

fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_of_a_node_has_a_row() {
        let node = |name: &str, services: serde_json::Value| -> NodeView {
            let view = serde_json::json!({
                "node": name, "region": "eu", "zone": "eu-a", "rack": "r1", "host": "h", "agent_version": "1",
                "lost": false, "seen_at": "1970-01-01T00:00:10Z", "services": services,
            });
            serde_json::from_value(view).expect("a node")
        };
        let version = serde_json::json!({"revision": 2, "step": 1});
        let web = serde_json::json!({
            "service": "web", "version": version, "artifact": null, "status": "RolledBack", "port": 28000,
            "message": "it ended\ntwice",
        });
        let big = serde_json::json!({
            "service": "big", "version": version, "artifact": null, "status": "Healthy", "port": null, "message": null,
        });
        let nodes = [node("eu-1", serde_json::json!([])), node("eu-2", serde_json::json!([big, web]))];
        let expected = "\
NODE  REGION  ZONE  RACK  STATE  SERVICE  ARTIFACT  STATUS       PORT   REPORTED  MESSAGE
eu-1  eu      eu-a  r1    here   -        -         -            -      20 s ago  -
eu-2  eu      eu-a  r1    here   big 2.1  -         healthy      -      20 s ago  -
eu-2  eu      eu-a  r1    here   web 2.1  -         rolled back  28000  20 s ago  it ended…";
        assert_eq!(table(&nodes, None, Timestamp(30_000)), expected);
        let only: ServiceName = "web".parse().expect("a name");
        assert_eq!(table(&nodes[1..], Some(&only), Timestamp(30_000)).lines().count(), 2);
    }
}
