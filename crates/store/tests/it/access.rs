use kedge_store::{Store, StoreError, TokenHash, TokenRow};

use crate::fixture::*;

#[tokio::test]
async fn the_first_password_of_a_repository_wins() {
    let store = Store::open_in_memory().await.unwrap();
    assert_eq!(store.find_repository(&project()).await.unwrap(), None);
    let unknown = store.mark_repository_made(&project()).await;
    assert!(matches!(unknown, Err(StoreError::NotFound(_))));

    let wrapped: Vec<u8> = (0..=255).collect();
    let first = store.create_repository(&project(), &wrapped, at(1)).await.unwrap();
    assert_eq!((&first.wrapped_password, first.made), (&wrapped, false));
    let second = store.create_repository(&project(), b"other", at(2)).await.unwrap();
    assert_eq!(second, first);

    store.create_repository(&stranger(), b"", at(3)).await.unwrap();
    store.mark_repository_made(&project()).await.unwrap();
    let found = store.find_repository(&project()).await.unwrap().unwrap();
    assert_eq!((found.made, found.created_at), (true, at(1)));
    let all = store.list_repositories().await.unwrap();
    let rows: Vec<_> = all.into_iter().map(|row| (row.project_id, row.made)).collect();
    assert_eq!(rows, [(project(), true), (stranger(), false)]);
}

#[tokio::test]
async fn a_wrapped_password_is_replaced_and_nothing_else_of_its_repository() {
    let store = Store::open_in_memory().await.unwrap();
    let unknown = store.replace_wrapped_password(&project(), b"new").await;
    assert!(matches!(unknown, Err(StoreError::NotFound(_))));

    for (project, at_secs) in [(project(), 1), (stranger(), 2)] {
        store.create_repository(&project, b"old", at(at_secs)).await.unwrap();
    }
    store.mark_repository_made(&project()).await.unwrap();
    store.replace_wrapped_password(&project(), b"new").await.unwrap();
    let rows: Vec<_> = store.list_repositories().await.unwrap();
    let rows: Vec<_> =
        rows.into_iter().map(|r| (r.wrapped_password, r.made, r.created_at)).collect();
    assert_eq!(rows, [(b"new".to_vec(), true, at(1)), (b"old".to_vec(), false, at(2))]);
}

fn token(number: u8, user: &str, expires_at: i64) -> TokenRow {
    TokenRow {
        hash: TokenHash([number; 32]),
        user_id: user.to_owned(),
        project_id: (number != 1).then(project),
        issued_at: at(1),
        expires_at: at(expires_at),
    }
}

#[tokio::test]
async fn a_token_is_found_by_its_hash_until_it_is_revoked() {
    let store = Store::open_in_memory().await.unwrap();
    let tokens = [token(1, "ann", 10), token(2, HOSTILE, 20), token(3, HOSTILE, 30)];
    for token in &tokens {
        store.create_token(token).await.unwrap();
        assert_eq!(store.find_token(&token.hash).await.unwrap().as_ref(), Some(token));
    }
    let twice = store.create_token(&tokens[0]).await;
    assert!(matches!(twice, Err(StoreError::Exists(_))));
    assert_eq!(store.find_token(&TokenHash([9; 32])).await.unwrap(), None);

    store.delete_token(&tokens[0].hash).await.unwrap();
    store.delete_token(&tokens[0].hash).await.unwrap();
    assert_eq!(store.find_token(&tokens[0].hash).await.unwrap(), None);
    assert_eq!(store.delete_tokens_of_user("ann").await.unwrap(), 0);
    assert_eq!(store.delete_tokens_of_user(HOSTILE).await.unwrap(), 2);
    assert_eq!(store.find_token(&tokens[1].hash).await.unwrap(), None);
}

#[tokio::test]
async fn tokens_that_ended_are_forgotten() {
    let store = Store::open_in_memory().await.unwrap();
    for token in [token(1, "ann", 10), token(2, "ann", 11), token(3, "ann", 12)] {
        store.create_token(&token).await.unwrap();
    }
    assert_eq!(store.purge_tokens(at(11)).await.unwrap(), 2);
    assert!(store.find_token(&TokenHash([3; 32])).await.unwrap().is_some());
}

#[test]
fn a_hash_shows_nothing_in_logs() {
    let token = token(0xab, "ann", 10);
    let shown = format!("{token:?}");
    assert!(!shown.contains("ab, ab") && !shown.contains("171"), "{shown}");
}
