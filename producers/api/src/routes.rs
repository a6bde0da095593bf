//! The one table of routes: method, path, what the caller must be, handler. The router is made from it and from nothing
//! else, so a route without a rule cannot exist.

use std::{any::Any, sync::Arc};

use axum::{
    Router,
    http::{Method, Uri},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter, delete, get, on, post},
};
use longshore_schemas::http::Role::{Admin, Builder, Deployer, Viewer, Worker};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    Shared,
    access::{self, Need, Rule},
    after, attempts, builds, claims, console, dead_letters, download, facts, files, imports, job_log,
    limits::{self, Class, Door},
    losses, nodes,
    problem::Failure,
    reads, registry, retention, services, submit, topics,
};

pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) need: Need,
    /// Whether the token may come in the query: for browsers' event sources.
    token_in_query: bool,
    class: Class,
    handler: MethodRouter<Arc<Shared>>,
}

fn route(method: Method, path: &'static str, need: Need, class: Class, handler: MethodRouter<Arc<Shared>>) -> Route {
    Route { method, path, need, token_in_query: false, class, handler }
}

fn stream(path: &'static str, need: Need, handler: MethodRouter<Arc<Shared>>) -> Route {
    Route { method: Method::GET, path, need, token_in_query: true, class: Class::Open, handler }
}

/// All that clients of a registry send. What is not taken is answered in the registry's own words.
fn registry_methods() -> MethodRouter<Arc<Shared>> {
    let methods = MethodFilter::GET.or(MethodFilter::POST).or(MethodFilter::PUT).or(MethodFilter::DELETE);
    on(methods, registry::serve)
}

#[rustfmt::skip]
pub(crate) fn table() -> Vec<Route> {
    use Class::{Ask, Attempt as AtAttempt, Check, Open, Read};
    use Need::{Attempt, Nothing, Role, Token};
    const GET: Method = Method::GET;
    const POST: Method = Method::POST;
    const DELETE: Method = Method::DELETE;
    vec![
        route(GET,    "/v1/health",                                  Nothing,        Check,     get(reads::health)),
        route(GET,    "/v1/whoami",                                  Token,          Check,     get(reads::whoami)),
        route(GET,    "/v1/checks",                                  Role(Viewer),   Read,      get(reads::checks)),
        route(GET,    "/v1/regions",                                 Role(Viewer),   Read,      get(reads::regions)),
        route(GET,    "/v1/requests/{topic}/{partition}/{offset}",   Role(Viewer),   Ask,       get(submit::outcome)),

        route(GET,    "/v1/queues",                                  Role(Viewer),   Read,      get(reads::queues)),
        route(GET,    "/v1/jobs",                                    Role(Viewer),   Read,      get(reads::jobs)),
        route(GET,    "/v1/jobs/{job}",                              Role(Viewer),   Read,      get(reads::job)),
        stream(       "/v1/jobs/{job}/log",                          Role(Viewer),              get(job_log::read)),
        route(POST,   "/v1/builds",                                  Role(Builder),  Ask,       post(builds::request)),
        route(POST,   "/v1/jobs/{job}/cancel",                       Role(Builder),  Ask,       post(builds::cancel)),

        route(GET,    "/v1/artifacts",                               Role(Viewer),   Read,      get(reads::artifacts)),
        route(GET,    "/v1/artifacts/{artifact}",                    Role(Viewer),   Read,      get(reads::artifact)),
        route(GET,    "/v1/artifacts/{artifact}/files",              Role(Viewer),   Read,      get(files::list)),
        route(GET,    "/v1/artifacts/{artifact}/files/{*path}",      Role(Viewer),   Read,      get(download::file)),
        route(GET,    "/v1/artifacts/{artifact}/root",               Role(Viewer),   Read,      get(files::root)),
        route(GET,    "/v1/artifacts/{artifact}/provenance",         Role(Viewer),   Read,      get(files::provenance)),
        route(POST,   "/v1/artifacts/{artifact}/packs",              Role(Viewer),   Read,      post(files::packs)),

        route(POST,   "/v1/imports",                                 Role(Builder),  Ask,       post(imports::import)),
        route(POST,   "/v1/imports/uploads",                         Role(Builder),  Ask,       post(imports::uploads)),
        route(POST,   "/v1/artifacts/{artifact}/keep",               Role(Deployer), Ask,       post(retention::keep)),
        route(DELETE, "/v1/artifacts/{artifact}/keep",               Role(Deployer), Ask,       delete(retention::let_go)),
        route(GET,    "/v1/retention",                               Role(Viewer),   Open,      get(retention::plan)),

        route(GET,    "/v1/services",                                Role(Viewer),   Read,      get(reads::services)),
        route(GET,    "/v1/services/{service}",                      Role(Viewer),   Read,      get(reads::service)),
        route(GET,    "/v1/services/{service}/fleet",                Role(Viewer),   Read,      get(reads::fleet)),
        route(POST,   "/v1/services/{service}/deploys",              Role(Deployer), Ask,       post(services::deploy)),
        route(POST,   "/v1/services/{service}/rollbacks",            Role(Deployer), Ask,       post(services::rollback)),
        route(POST,   "/v1/services/{service}/pause",                Role(Deployer), Ask,       post(services::pause)),
        route(POST,   "/v1/services/{service}/resume",               Role(Deployer), Ask,       post(services::resume)),
        route(DELETE, "/v1/services/{service}/holds/{artifact}",     Role(Deployer), Ask,       delete(services::lift_hold)),
        route(GET,    "/v1/nodes",                                   Role(Viewer),   Read,      get(reads::nodes)),
        route(GET,    "/v1/nodes/{node}",                            Role(Viewer),   Read,      get(nodes::show)),
        route(GET,    "/v1/nodes/{node}/services/{service}/log",     Role(Deployer), Open,      get(nodes::log)),

        route(POST,   "/v1/partitions/{processor}/{partition}/accept-loss", Role(Admin), Ask,      post(losses::accept)),

        stream(       "/v1/facts/{topic}",                           Role(Viewer),              get(facts::follow)),
        stream(       "/v1/log/{topic}",                             Role(Admin),               get(facts::tail)),
        route(GET,    "/v1/topics",                                  Role(Viewer),   Read,      get(topics::list)),
        route(GET,    "/v1/dead-letters",                            Role(Admin),    Read,      get(dead_letters::list)),
        route(GET,    "/v1/dead-letters/{offset}",                   Role(Admin),    Read,      get(dead_letters::show)),
        route(POST,   "/v1/dead-letters/{offset}/retry",             Role(Admin),    Ask,       post(dead_letters::retry)),
        stream(       "/v1/verify",                                  Role(Admin),               get(topics::verify)),

        // A registry of its own, with every method: its clients know it so.
        route(GET,    registry::PATH,                                Nothing,        Read,      registry_methods()),
        route(GET,    "/registry/{*address}",                        Nothing,        Read,      registry_methods()),

        route(POST,   "/v1/queues/{queue}/claims",                   Role(Worker),   Open,      post(claims::claim)),
        route(POST,   "/v1/jobs/{job}/attempts/{attempt}/beats",     Attempt,        AtAttempt, post(attempts::beat)),
        route(POST,   "/v1/jobs/{job}/attempts/{attempt}/uploads",   Attempt,        AtAttempt, post(attempts::uploads)),
        route(POST,   "/v1/jobs/{job}/attempts/{attempt}/log",       Attempt,        AtAttempt, post(attempts::log)),
        route(POST,   "/v1/jobs/{job}/attempts/{attempt}/finish",    Attempt,        AtAttempt, post(attempts::finish)),
    ]
}

pub(crate) fn router(shared: &Arc<Shared>) -> Router {
    let mut router = Router::new();
    for Route { method, path, need, token_in_query, class, handler } in table() {
        let rule = Rule { shared: shared.clone(), need, token_in_query };
        let door = Door { method: limits::name(&method), route: path, gate: shared.gates.of(class) };
        let handler = match class {
            Class::Read => handler.route_layer(from_fn_with_state(shared.clone(), after::wait)),
            _ => handler,
        };
        // What is added last comes first: a full house reads no tokens.
        let checked = handler.route_layer(from_fn_with_state(rule, access::check));
        router = router.route(path, checked.route_layer(from_fn_with_state(door, limits::admit)));
    }
    router
        .fallback(console::serve)
        .method_not_allowed_fallback(wrong_method)
        .layer(CatchPanicLayer::custom(|panic: Box<dyn Any + Send>| panicked(&*panic)))
        .with_state(shared.clone())
}

async fn wrong_method(method: Method, uri: Uri) -> Failure {
    Failure::wrong_method(format!("{} does not take {method}", uri.path()))
}

fn panicked(panic: &(dyn Any + Send)) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = text.unwrap_or("not a text"), "a request made the API panic");
    Failure::internal("this is a defect of the API: its log has the details").into_response()
}
