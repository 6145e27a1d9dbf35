//! Verdicts that are kept: signed, chained, and checked without the service.

use kedge_core::code::Code;
use kedge_service::context::Right;
use kedge_service::receipts::{Receipt, verify};
use kedge_testkit::{Harness, OTHER_PROJECT, STRANGER};

use crate::support::*;

const MIB: usize = 1 << 20;

/// Three receipts: a yes, a no, and a yes of another project in between.
async fn chain() -> (Harness, Vec<Receipt>) {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(1, MIB)]);
    let saved = back_up(&harness, &server).await;
    let context = harness.context().await;
    let mut question = straight(&saved, &server);
    let (explained, _) =
        harness.app.receipt_restorable(&context, vec![question.clone()]).await.unwrap();
    assert!(explained[0].explanation.verdict.is_ok());
    let token = harness.token(STRANGER, OTHER_PROJECT).await;
    let stranger = harness.app.authorise(Some(&token), OTHER_PROJECT, Right::Write).await.unwrap();
    let foreign = harness.app.receipt_restorable(&stranger, vec![question.clone()]).await.unwrap();
    assert!(foreign.1.body.contains("\"sequence\":1"), "each project has a chain of its own");
    assert!(foreign.1.body.contains(&Code::ItemNotFound.to_string()));
    question.resource_type = "server".to_owned();
    for _ in 0..2 {
        let asked = vec![question.clone()];
        harness.app.receipt_restorable(&context, asked).await.unwrap();
    }
    let receipts = harness.app.list_receipts(&context, 0).await.unwrap();
    assert_eq!(receipts.len(), 3);
    assert!(receipts[1].body.contains(&Code::TypeNotRestorable.to_string()));
    (harness, receipts)
}

#[tokio::test]
async fn a_chain_holds_and_says_whose_it_is() {
    let (harness, receipts) = chain().await;
    let chain = verify(receipts.clone()).unwrap();
    assert_eq!((chain.records, chain.project.as_str()), (3, kedge_testkit::PROJECT));
    assert_eq!(chain.keys.len(), 1);
    // It goes on after a restart, and by the same key.
    let harness = harness.restarted().await;
    let context = harness.context().await;
    harness.app.receipt_restorable(&context, Vec::new()).await.unwrap();
    let later = harness.app.list_receipts(&context, 3).await.unwrap();
    let whole = verify(receipts.into_iter().chain(later)).unwrap();
    assert_eq!((whole.records, whole.keys), (4, chain.keys));
}

#[tokio::test]
async fn whatever_is_changed_taken_out_or_put_in_between_shows() {
    let (_, receipts) = chain().await;
    let whole = verify(receipts.clone()).unwrap();
    let mut changed = receipts.clone();
    changed[0].body = changed[0].body.replace("\"result\":true", "\"result\":false");
    assert_ne!(changed, receipts);
    let mut swapped = receipts.clone();
    swapped.swap(1, 2);
    let mut signed_otherwise = receipts.clone();
    signed_otherwise[1].signature = receipts[0].signature.clone();
    let mut twice = receipts.clone();
    twice.insert(1, receipts[0].clone());
    let mut garbage = receipts.clone();
    garbage[2].signature = "é".to_owned();
    for (what, bad, number) in [
        ("changed", changed, 1),
        ("the first taken out", receipts[1..].to_vec(), 1),
        ("swapped", swapped, 2),
        ("signed otherwise", signed_otherwise, 2),
        ("twice", twice, 2),
        ("garbage", garbage, 3),
    ] {
        assert_eq!(verify(bad).map_err(|broken| broken.number), Err(number), "{what}");
    }
    // What is cut off shows by the head that somebody noted.
    let cut = verify(receipts[..2].to_vec()).unwrap();
    assert_ne!(cut.head, whole.head);
}
