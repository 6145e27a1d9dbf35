//! The built-in identity, shaped like Keystone's v3.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode};
use kedge_service::error::Error;
use kedge_service::identity::TokenInfo;
use kedge_wire::checkpoint_item::Link;
use kedge_wire::identity::{
    AuthBody, CatalogBody, CatalogEntry, IdentityVersion, IdentityVersionBody, MediaType,
    ProjectList, TokenBody,
};

use crate::call::{Call, SUBJECT_TOKEN};
use crate::convert;
use crate::error::ApiError;
use crate::requests;
use crate::routes::{Answer, Api};

/// The version of the identity service.
#[utoipa::path(
    get, path = "/v3", operation_id = "show_identity_version", tag = "identity", security(),
    responses((status = 200, description = "The version", body = IdentityVersionBody)),
)]
pub(crate) async fn version(State(api): State<Api>, call: Call) -> Answer<IdentityVersionBody> {
    let href = format!("{}/v3/", call.base(&api)?);
    Ok(Json(IdentityVersionBody {
        version: IdentityVersion {
            id: "v3.14".to_owned(),
            status: "stable".to_owned(),
            updated: "2020-04-07T00:00:00Z".to_owned(),
            links: vec![Link { rel: "self".to_owned(), href }],
            media_types: vec![MediaType {
                base: "application/json".to_owned(),
                media_type: "application/vnd.openstack.identity-v3+json".to_owned(),
            }],
        },
    }))
}

/// Gives a token for a password.
#[utoipa::path(
    post, path = "/v3/auth/tokens", operation_id = "create_token", tag = "identity", security(), request_body = AuthBody,
    responses((
        status = 201, description = "What the token stands for", body = TokenBody,
        headers(("X-Subject-Token" = String, description = "The token")),
    )),
    params(("nocatalog" = Option<String>, Query, description = "Leave the catalogue out")),
)]
pub(crate) async fn login(
    State(api): State<Api>,
    call: Call,
    body: Body,
) -> Result<Response, ApiError> {
    let (query, base) = (call.query()?, call.base(&api)?);
    let login = call.read_login(&api, body, requests::login).await?;
    let issued = api.app.login(login).await?;
    let wants_catalog = query.all("nocatalog").next().is_none();
    let catalog = wants_catalog.then(|| catalog_of(&api, &base, &issued.info)).flatten();
    let body = convert::token(&issued.info, catalog);
    with_token(StatusCode::CREATED, &issued.token, body)
}

/// Shows what a token stands for.
#[utoipa::path(
    get, path = "/v3/auth/tokens", operation_id = "show_token", tag = "identity",
    responses((
        status = 200, description = "What the token stands for", body = TokenBody,
        headers(("X-Subject-Token" = String, description = "The token")),
    )),
    params(
        ("X-Subject-Token" = String, Header, description = "The token asked about"),
        ("nocatalog" = Option<String>, Query, description = "Leave the catalogue out"),
    ),
)]
pub(crate) async fn show_token(State(api): State<Api>, call: Call) -> Result<Response, ApiError> {
    let (query, base) = (call.query()?, call.base(&api)?);
    let token = call.token()?;
    let subject = call.subject()?;
    let info = api.app.subject_info(token, subject).await?.ok_or(Error::TokenNotFound)?;
    let wants_catalog = query.all("nocatalog").next().is_none();
    let catalog = wants_catalog.then(|| catalog_of(&api, &base, &info)).flatten();
    with_token(StatusCode::OK, subject, convert::token(&info, catalog))
}

/// Ends a token.
#[utoipa::path(
    delete, path = "/v3/auth/tokens", operation_id = "delete_token", tag = "identity",
    responses((status = 204, description = "It is no token any more")),
    params(("X-Subject-Token" = String, Header, description = "The token to end")),
)]
pub(crate) async fn revoke(State(api): State<Api>, call: Call) -> Result<StatusCode, ApiError> {
    let token = call.token()?;
    api.app.revoke(token, call.subject()?).await?.ok_or(Error::TokenNotFound)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Shows where the services are.
#[utoipa::path(
    get, path = "/v3/auth/catalog", operation_id = "show_catalog", tag = "identity",
    responses((status = 200, description = "The catalogue", body = CatalogBody)),
)]
pub(crate) async fn catalog(State(api): State<Api>, call: Call) -> Answer<CatalogBody> {
    let info = api.app.token_info(call.token()?).await?;
    let base = call.base(&api)?;
    let links = convert::list_links(format!("{base}/v3/auth/catalog"));
    match catalog_of(&api, &base, &info) {
        Some(catalog) => Ok(Json(CatalogBody { catalog, links })),
        // As Keystone: a token of no project has no catalogue to show.
        None => Err(Error::Forbidden.into()),
    }
}

/// Lists the projects the user may work in.
#[utoipa::path(
    get, path = "/v3/auth/projects", operation_id = "list_own_projects", tag = "identity",
    responses((status = 200, description = "The projects", body = ProjectList)),
    params(("name" = Option<String>, Query, description = "Only the one of this name")),
)]
pub(crate) async fn projects(State(api): State<Api>, call: Call) -> Answer<ProjectList> {
    let known = api.app.projects(call.token()?).await?;
    let (query, base) = (call.query()?, call.base(&api)?);
    let name = query.one("name")?;
    let wanted = known.iter().filter(|project| name.is_none_or(|name| project.name == name));
    Ok(Json(ProjectList {
        projects: wanted.map(|project| convert::project(&base, project)).collect(),
        links: convert::list_links(format!("{base}/v3/projects")),
    }))
}

/// The same list where clients look for a project's id by its name.
#[utoipa::path(
    get, path = "/v3/projects", operation_id = "list_projects", tag = "identity",
    responses((status = 200, description = "The projects", body = ProjectList)),
    params(("name" = Option<String>, Query, description = "Only the one of this name")),
)]
#[expect(dead_code, reason = "documents the second path of `projects`")]
fn projects_by_name() {}

fn catalog_of(api: &Api, base: &str, info: &TokenInfo) -> Option<Vec<CatalogEntry>> {
    let project = info.project.as_ref()?;
    Some(convert::catalog(base, &api.config.region, project))
}

/// The token goes into its header, marked so that nothing logs it.
fn with_token(status: StatusCode, token: &str, body: TokenBody) -> Result<Response, ApiError> {
    let mut value = HeaderValue::from_str(token)
        .map_err(|_| Error::Internal("a token that is no header".to_owned()))?;
    value.set_sensitive(true);
    let mut response = (status, Json(body)).into_response();
    response.headers_mut().insert(SUBJECT_TOKEN, value);
    Ok(response)
}
