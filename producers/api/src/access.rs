//! Who may do what. Every route names what it needs; there is no route without ([`crate::routes`]).
//!
//! Two kinds of callers: holders of a token, with a role, and workers with the credential of one attempt, which is signed
//! and says which attempt it is for. Whether that attempt still runs is checked where it matters, against the read model.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Request, State},
    http::{header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use longshore_schemas::{
    JobId, WorkerId,
    http::{Identity, Role},
};
use longshore_service::tokens::name;
use serde::{Deserialize, Serialize};

use crate::{Shared, extract::Params, problem::Failure};

/// What the credentials of attempts are derived for.
pub(crate) const ATTEMPT_PURPOSE: &str = "attempt";

/// What a route needs of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Anyone, without a token.
    Nothing,
    /// Any valid token.
    Token,
    /// This role, or one that includes it.
    Role(Role),
    /// The credential of the attempt in the path.
    Attempt,
}

/// Who calls.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    Holder(Identity),
    Attempt(AttemptCredential),
}

/// What the credential of an attempt carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AttemptCredential {
    pub job: JobId,
    pub attempt: u32,
    pub worker: WorkerId,
}

/// A route's rule, beside what is needed to check it.
#[derive(Clone)]
pub(crate) struct Rule {
    pub shared: Arc<Shared>,
    pub need: Need,
    /// Whether the token may come as `?access_token=`, for browsers' event sources, which cannot set headers.
    pub token_in_query: bool,
}

/// Lets the request pass with its [`Caller`], or answers 401 or 403.
pub(crate) async fn check(State(rule): State<Rule>, mut request: Request, next: Next) -> Response {
    if rule.need == Need::Nothing {
        return next.run(request).await;
    }
    let caller = match token(&request, rule.token_in_query).and_then(|token| identify(&rule.shared, &token)) {
        Ok(caller) => caller,
        Err(failure) => return failure.into_response(),
    };
    if let Err(failure) = permit(rule.need, &caller) {
        return failure.into_response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

fn token(request: &Request, in_query: bool) -> Result<String, Failure> {
    if let Some(value) = request.headers().get(header::AUTHORIZATION) {
        let bearer = value.to_str().ok().and_then(|value| value.split_once(' '));
        return match bearer {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim().to_owned()),
            _ => Err(Failure::unauthenticated("the authorization header must read: Bearer TOKEN")),
        };
    }
    let pairs = request.uri().query().unwrap_or_default().split('&');
    let in_query = pairs.filter(|_| in_query).find_map(|pair| pair.strip_prefix("access_token="));
    // Tokens consist of characters that need no escaping in a query.
    in_query
        .map(str::to_owned)
        .ok_or_else(|| Failure::unauthenticated("send your token in the header: Authorization: Bearer TOKEN"))
}

fn identify(shared: &Shared, token: &str) -> Result<Caller, Failure> {
    if let Some(identity) = shared.tokens.verify(token) {
        return Ok(Caller::Holder(identity));
    }
    let credential = shared.attempts.verify(token).map(Caller::Attempt);
    credential.ok_or_else(|| {
        Failure::unauthenticated("this token is not known here: check that it is complete and of this installation")
    })
}

fn permit(need: Need, caller: &Caller) -> Result<(), Failure> {
    let allowed = match (need, caller) {
        (Need::Nothing, _) | (Need::Token, Caller::Holder(_)) | (Need::Attempt, Caller::Attempt(_)) => true,
        (Need::Role(need), Caller::Holder(Identity { role, .. })) => includes(*role, need),
        _ => false,
    };
    if allowed {
        return Ok(());
    }
    let needed = match need {
        Need::Attempt => "the attempt's own credential, which the worker got with its assignment".to_owned(),
        Need::Role(Role::Worker) => "a token of role worker".to_owned(),
        Need::Role(role) => format!("a token of role {} or higher", name(role)),
        Need::Token | Need::Nothing => "a token".to_owned(),
    };
    let is = match caller {
        Caller::Holder(identity) => format!("{:?} has role {}", identity.subject, name(identity.role)),
        Caller::Attempt(of) => format!("this is the credential of attempt {} of {}", of.attempt, of.job),
    };
    Err(Failure::forbidden(format!("this needs {needed}; {is}")))
}

/// Each role includes the ones before it; worker and node stand alone.
fn includes(role: Role, need: Role) -> bool {
    role == need || (role <= Role::Admin && need <= role)
}

/// The caller, where the route needs a token.
pub(crate) struct Holder(pub Identity);

impl FromRequestParts<Arc<Shared>> for Holder {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Shared>) -> Result<Self, Failure> {
        match parts.extensions.get::<Caller>() {
            Some(Caller::Holder(identity)) => Ok(Self(identity.clone())),
            _ => Err(Failure::internal("this route's rule does not provide a token's holder")),
        }
    }
}

/// The attempt that the route is about, whose credential the caller has.
pub(crate) struct OfAttempt(pub AttemptCredential);

impl FromRequestParts<Arc<Shared>> for OfAttempt {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Failure> {
        let Params((job, attempt)) = Params::<(JobId, u32)>::from_request_parts(parts, shared).await?;
        match parts.extensions.get::<Caller>() {
            Some(Caller::Attempt(of)) if of.job == job && of.attempt == attempt => Ok(Self(of.clone())),
            Some(Caller::Attempt(of)) => Err(Failure::forbidden(format!(
                "this credential is for attempt {} of {}, not for attempt {attempt} of {job}",
                of.attempt, of.job
            ))),
            _ => Err(Failure::internal("this route's rule does not provide an attempt")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_include_the_ones_before_them() {
        use Role::{Admin, Builder, Deployer, Node, Viewer, Worker};
        let table: [(Role, &[Role]); 6] = [
            (Viewer, &[Viewer]),
            (Builder, &[Viewer, Builder]),
            (Deployer, &[Viewer, Builder, Deployer]),
            (Admin, &[Viewer, Builder, Deployer, Admin]),
            (Worker, &[Worker]),
            (Node, &[Node]),
        ];
        for (role, included) in table {
            for need in [Viewer, Builder, Deployer, Admin, Worker, Node] {
                assert_eq!(includes(role, need), included.contains(&need), "{role:?} for {need:?}");
            }
        }
    }
}
