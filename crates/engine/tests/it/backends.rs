//! One contract for every store, with and without layers, and S3 behind a proxy that
//! misbehaves in every way stores and networks do.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    str::FromStr,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use kedge_engine::{
    Backend, BackendError, ConditionalPut, CredentialsFile, Listed, LocalBackend, MemoryBackend,
    ObjectKind, ObjectName, S3Backend, S3Bucket, S3Options, S3Timeouts,
    layer::{Bucket, Pace, Rates, Retry, RetryLimits, Throttle},
};

use crate::{
    moto::{
        ACCESS_KEY, BUCKET, Moto, SECRET_KEY, bucket, credential, fresh_prefix, impatient, in_moto,
        options, workspace,
    },
    proxy::{Mischief, Proxy, Request},
    support::{
        Disk, MIB, PASSWORD, assert_clean, assert_restores, back_up, create, noise, open,
        store_options, volume,
    },
};

/// Time that passes by waiting alone.
#[derive(Debug, Default)]
struct StillPace(Mutex<Duration>);

impl Pace for StillPace {
    fn now(&self) -> Duration {
        *self.0.lock().unwrap()
    }

    fn sleep(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }

    fn jitter(&self) -> f64 {
        0.5
    }
}

fn pace() -> Arc<dyn Pace> {
    Arc::new(StillPace::default())
}

/// Patient enough for any mischief here.
fn retried<B: Backend>(backend: B) -> Retry<B> {
    let limits = RetryLimits {
        tries_max: 30,
        time_max: Duration::from_secs(3600),
        ..RetryLimits::default()
    };
    Retry::new(backend, limits, pace())
}

fn layered<B: Backend>(backend: B) -> Retry<Throttle<B>> {
    let rates = Rates { bytes_per_sec: Some(100 << 20), operations_per_sec: Some(1000) };
    retried(Throttle::new(backend, Arc::new(Bucket::new(rates, pace()))))
}

/// An id of any kind.
fn id<T: FromStr<Err: std::fmt::Debug>>(bytes: &[u8; 32]) -> T {
    let digits: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat().parse().unwrap()
}

fn pack(seed: u8) -> ObjectName {
    ObjectName::Pack(id(&[seed; 32]))
}

fn one_of_each_kind(seed: u8) -> [ObjectName; 8] {
    [
        ObjectName::Config,
        ObjectName::Access,
        ObjectName::Key(id(&[seed; 32])),
        pack(seed),
        ObjectName::Index(id(&[seed; 32])),
        ObjectName::Snapshot(id(&[seed; 32])),
        ObjectName::Lock(id(&[seed; 32])),
        ObjectName::Mark(id(&[seed; 32])),
    ]
}

/// What every store promises. The place is new.
fn keeps_the_contract(backend: &dyn Backend) {
    backend.prepare().unwrap();
    backend.prepare().unwrap();
    assert_eq!(backend.find_size(&ObjectName::Config), Ok(None));
    assert_eq!(backend.get(&ObjectName::Config, 10), Err(BackendError::NotFound));
    backend.put(&ObjectName::Config, b"config").unwrap();
    objects_of_every_kind_come_and_go(backend);
    reads_are_bounded_and_exact(backend);
    large_objects_stay_whole(backend);
    callers_at_once_do_not_disturb_each_other(backend);
}

fn objects_of_every_kind_come_and_go(backend: &dyn Backend) {
    for name in one_of_each_kind(1) {
        let kind = name.kind();
        if kind != ObjectKind::Config {
            assert_eq!(backend.find_size(&name), Ok(None), "{name}");
            assert_eq!(backend.get(&name, 10), Err(BackendError::NotFound), "{name}");
            assert_eq!(backend.read_at(&name, 0, &mut [0]), Err(BackendError::NotFound));
            assert_eq!(backend.list(kind), Ok(vec![]), "{name}");
            backend.delete(&name).unwrap();
        }
        for _ in 0..2 {
            backend.put(&name, b"some bytes").unwrap();
            assert_eq!(backend.find_size(&name), Ok(Some(10)), "{name}");
            assert_eq!(backend.get(&name, 10).unwrap(), b"some bytes");
            assert_eq!(backend.list(kind), Ok(vec![Listed { name, size_bytes: 10 }]));
        }
    }
    // Rewritten whole, these two alone.
    for name in [ObjectName::Config, ObjectName::Access] {
        backend.put(&name, b"other").unwrap();
        assert_eq!(backend.get(&name, 10).unwrap(), b"other");
    }
    for name in &one_of_each_kind(1)[1..] {
        backend.delete(name).unwrap();
        backend.delete(name).unwrap();
        assert_eq!(backend.find_size(name), Ok(None), "{name}");
        assert_eq!(backend.list(name.kind()), Ok(vec![]), "{name}");
    }
    backend.remove_leftovers().unwrap();
    assert_eq!(backend.get(&ObjectName::Config, 10).unwrap(), b"other");
}

fn reads_are_bounded_and_exact(backend: &dyn Backend) {
    let name = pack(2);
    backend.put(&name, b"0123456789").unwrap();
    assert_eq!(backend.get(&name, 9), Err(BackendError::TooLarge));
    assert_eq!(backend.get(&name, 10).unwrap(), b"0123456789");
    for (offset, len, expected) in [
        (0, 10, Ok("0123456789")),
        (3, 4, Ok("3456")),
        (9, 1, Ok("9")),
        (0, 0, Ok("")),
        (9, 2, Err(BackendError::Truncated)),
        (0, 11, Err(BackendError::Truncated)),
        (10, 1, Err(BackendError::Truncated)),
        (1 << 40, 1, Err(BackendError::Truncated)),
    ] {
        let mut buf = vec![0; len];
        let read = backend.read_at(&name, offset, &mut buf);
        assert_eq!(read.map(|()| buf), expected.map(|text| text.as_bytes().to_vec()), "{offset}");
    }
    backend.put(&pack(3), b"").unwrap();
    assert_eq!(backend.get(&pack(3), 0).unwrap(), b"");
    assert_eq!(backend.find_size(&pack(3)), Ok(Some(0)));
}

fn large_objects_stay_whole(backend: &dyn Backend) {
    for (seed, len) in [(4, 8 * MIB), (5, 8 * MIB + 1), (6, 20 * MIB + 17)] {
        let (name, bytes) = (pack(seed), noise(seed.into(), len));
        backend.put(&name, &bytes).unwrap();
        assert_eq!(backend.find_size(&name), Ok(Some(len as u64)));
        assert!(backend.get(&name, len as u64).unwrap() == bytes, "{len} bytes differ");
        let mut buf = vec![0; MIB];
        backend.read_at(&name, (len - MIB) as u64, &mut buf).unwrap();
        assert!(buf == bytes[len - MIB..], "the end of {len} bytes differs");
    }
}

fn callers_at_once_do_not_disturb_each_other(backend: &dyn Backend) {
    let name = |of: u8| ObjectName::Snapshot(id(&[of; 32]));
    thread::scope(|scope| {
        for of in 0..8 {
            scope.spawn(move || {
                for _ in 0..4 {
                    backend.put(&name(of), &[of; 100]).unwrap();
                    assert_eq!(backend.get(&name(of), 100).unwrap(), [of; 100]);
                }
            });
        }
    });
    let listed = backend.list(ObjectKind::Snapshot).unwrap();
    let names: BTreeSet<_> = listed.iter().map(|listed| listed.name).collect();
    assert_eq!(names, (0..8).map(name).collect());
    assert_eq!(listed.len(), 8);
}

#[test]
fn memory_keeps_the_contract() {
    keeps_the_contract(&MemoryBackend::new());
    keeps_the_contract(&layered(MemoryBackend::new()));
}

#[test]
fn a_local_directory_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    keeps_the_contract(&LocalBackend::new(dir.path().join("plain")));
    keeps_the_contract(&layered(LocalBackend::new(dir.path().join("layered"))));
}

#[test]
fn s3_keeps_the_contract() {
    keeps_the_contract(&in_moto());
}

#[test]
fn s3_under_layers_keeps_the_contract() {
    keeps_the_contract(&layered(in_moto()));
}

#[test]
fn a_certificate_is_trusted_when_it_is_in_the_file_and_not_otherwise() {
    let moto = Moto::shared();
    let trusting =
        S3Options { ca_pem: Some(moto.certificate_pem.clone()), ..options(moto.tls_endpoint()) };
    let open =
        |options: &S3Options| bucket(options, Arc::new(credential())).repository(&fresh_prefix());
    keeps_the_contract(&open(&trusting));
    let wary = open(&S3Options { ca_pem: None, ..trusting.clone() });
    let error = wary.put(&ObjectName::Config, b"config").unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    for pem in ["", "no certificate"] {
        let options = S3Options { ca_pem: Some(pem.into()), ..trusting.clone() };
        let runtime = crate::moto::runtime().handle().clone();
        let refused = S3Bucket::new(&options, Arc::new(credential()), runtime).unwrap_err();
        assert!(refused.to_string().contains("certificates"), "{refused}");
    }
}

/// A store of the lab, which the nightly run starts before the long form of the tests and
/// tells of in a file: endpoint, bucket, access key and secret, a line each.
#[test]
fn ceph_keeps_the_contract_in_the_long_form() {
    if std::env::var_os("KEDGE_TEST_LONG").is_none() {
        return;
    }
    let file = workspace().join("target/lab/s3");
    let text = fs::read_to_string(&file).expect("`cargo xtask nightly` starts the lab");
    let lines: Vec<_> = text.lines().collect();
    let [endpoint, lab_bucket, key, secret] = lines[..] else { panic!("{}", file.display()) };
    let options = S3Options { bucket: lab_bucket.to_owned(), ..options(endpoint.to_owned()) };
    let mut credential = credential();
    credential.access_key_id = key.to_owned();
    credential.secret_access_key = secret.to_owned().into();
    let bucket = bucket(&options, Arc::new(credential));
    keeps_the_contract(&bucket.repository(&fresh_prefix()));
    keeps_the_contract(&layered(bucket.repository(&fresh_prefix())));
    a_repository_lives(Arc::new(bucket.repository(&fresh_prefix())));
}

#[test]
fn every_page_of_a_long_list_is_read_and_foreign_objects_are_none() {
    let prefix = fresh_prefix();
    let options = options(Moto::shared().endpoint());
    let bucket = bucket(&options, Arc::new(credential()));
    let backend = bucket.repository(&prefix);
    backend.put(&ObjectName::Config, b"config").unwrap();
    let name = |of: u16| {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&of.to_be_bytes());
        ObjectName::Snapshot(id(&bytes))
    };
    thread::scope(|scope| {
        for part in 0..4 {
            let backend = &backend;
            scope.spawn(move || {
                for of in (part..1100).step_by(4) {
                    backend.put(&name(of), b"s").unwrap();
                }
            });
        }
    });
    // Somebody else's objects in our folders.
    let foreign = bucket.repository(&format!("{prefix}/snapshots"));
    foreign.put(&ObjectName::Config, b"c").unwrap();
    foreign.put(&ObjectName::Key(id(&[0; 32])), b"k").unwrap();
    let listed = backend.list(ObjectKind::Snapshot).unwrap();
    let names: BTreeSet<_> = listed.iter().map(|listed| listed.name).collect();
    assert_eq!(names, (0..1100).map(name).collect());
    assert_eq!(listed.len(), 1100);
}

#[test]
fn a_place_without_its_config_is_gone_rather_than_empty() {
    let backend = in_moto();
    backend.put(&ObjectName::Config, b"config").unwrap();
    backend.put(&pack(1), b"pack").unwrap();
    backend.delete(&ObjectName::Config).unwrap();
    let gone = |result: Result<(), BackendError>| {
        assert!(matches!(result, Err(BackendError::Gone { .. })), "{result:?}");
    };
    gone(backend.get(&pack(2), 10).map(drop));
    gone(backend.find_size(&pack(2)).map(drop));
    gone(backend.read_at(&pack(2), 0, &mut [0; 4]));
    gone(backend.list(ObjectKind::Index).map(drop));
    gone(backend.put(&pack(2), b"pack"));
    let elsewhere =
        S3Options { bucket: "no-such-bucket".to_owned(), ..options(Moto::shared().endpoint()) };
    let elsewhere = bucket(&elsewhere, Arc::new(credential())).repository("");
    gone(elsewhere.get(&ObjectName::Config, 10).map(drop));
    gone(elsewhere.list(ObjectKind::Pack).map(drop));
    gone(elsewhere.put(&ObjectName::Config, b"config"));
}

fn behind_proxy(timeouts: S3Timeouts) -> (Proxy, S3Backend) {
    let proxy = Proxy::before(Moto::shared().port());
    let options = S3Options { timeouts, ..options(proxy.endpoint()) };
    let backend = bucket(&options, Arc::new(credential())).repository(&fresh_prefix());
    let keep = |name, bytes: &[u8]| retried(backend.clone()).put(&name, bytes).unwrap();
    keep(ObjectName::Config, b"config");
    keep(pack(1), b"0123456789");
    (proxy, backend)
}

type Call = fn(&dyn Backend) -> Result<(), BackendError>;

/// What is asked of a store that holds [`pack`] 1 with ten bytes.
const CALLS: [(&str, Call); 7] = [
    ("put", |b| b.put(&pack(2), &[2; 100])),
    ("put in parts", |b| b.put(&pack(3), &[3; 9 * MIB])),
    ("get", |b| {
        assert_eq!(b.get(&pack(1), 10)?, b"0123456789");
        Ok(())
    }),
    ("read_at", |b| {
        let mut buf = [0; 4];
        b.read_at(&pack(1), 3, &mut buf)?;
        assert_eq!(&buf, b"3456");
        Ok(())
    }),
    ("find_size", |b| {
        assert_eq!(b.find_size(&pack(1))?, Some(10));
        Ok(())
    }),
    ("list", |b| {
        assert!(!b.list(ObjectKind::Pack)?.is_empty());
        Ok(())
    }),
    ("delete", |b| b.delete(&pack(9))),
];

#[test]
fn trouble_that_may_pass_is_told_as_such_and_passes_when_asked_again() {
    let (proxy, backend) = behind_proxy(impatient());
    for mischief in [
        Mischief::Refuse(500, "InternalError"),
        Mischief::Refuse(503, "SlowDown"),
        Mischief::Refuse(429, "TooManyRequests"),
        Mischief::Refuse(502, ""),
        Mischief::RefuseAfterwards(504, ""),
        Mischief::Reset,
        Mischief::Truncate,
        Mischief::Stall,
    ] {
        for (what, call) in CALLS {
            proxy.misbehave_once(mischief, |_| true);
            match call(&backend) {
                Err(error) => assert!(error.is_retryable(), "{what}, {mischief:?}: {error:?}"),
                // The answer to a put is its head, which came; hence nothing was amiss.
                Ok(()) => assert!(
                    matches!(mischief, Mischief::Truncate | Mischief::Stall),
                    "{what}, {mischief:?}"
                ),
            }
            // Silence takes its time.
            let mut left = if mischief == Mischief::Stall { 1 } else { 3 };
            proxy.misbehave(move |_| {
                left -= 1;
                if left >= 0 { mischief } else { Mischief::Pass }
            });
            call(&retried(backend.clone())).unwrap_or_else(|e| panic!("{what}, {mischief:?}: {e}"));
        }
    }
    proxy.misbehave(|_| Mischief::Pass);
    assert_eq!(backend.get(&pack(2), 100).unwrap(), [2; 100]);
    assert!(backend.get(&pack(3), 9 << 20).unwrap() == [3; 9 * MIB]);
}

fn is_abort(request: &Request) -> bool {
    request.method() == "DELETE" && request.target().contains("uploadId=")
}

/// Counts the uploads that end unfinished from now on, under this mischief.
fn count_aborts(proxy: &Proxy, mischief: Mischief) -> Arc<Mutex<u32>> {
    let aborts = Arc::new(Mutex::new(0));
    let count = Arc::clone(&aborts);
    proxy.misbehave(move |request| {
        *count.lock().unwrap() += u32::from(is_abort(request));
        mischief
    });
    aborts
}

/// moto says of every upload that it began on this evening.
const SOON: Mischief = Mischief::At("Wed, 10 Nov 2010 23:00:00 GMT");
const LATER: Mischief = Mischief::At("Fri, 12 Nov 2010 23:00:00 GMT");

#[test]
fn an_upload_that_fails_is_given_up_and_one_that_a_crash_left_is_ended_when_it_is_old() {
    let (proxy, backend) = behind_proxy(S3Timeouts::default());
    let is_second_part = |request: &Request| request.target().contains("partNumber=2");
    proxy.misbehave_once(Mischief::Refuse(503, "SlowDown"), is_second_part);
    assert!(backend.put(&pack(2), &[1; 20 * MIB]).unwrap_err().is_retryable());
    let aborts = count_aborts(&proxy, LATER);
    backend.remove_leftovers().unwrap();
    assert_eq!(*aborts.lock().unwrap(), 0, "it was given up when it failed");

    // Nobody gives this one up.
    proxy.misbehave(move |request| {
        let is_cut_off = is_second_part(request) || is_abort(request);
        if is_cut_off { Mischief::Refuse(503, "SlowDown") } else { Mischief::Pass }
    });
    assert!(backend.put(&pack(2), &[1; 20 * MIB]).unwrap_err().is_retryable());
    for (mischief, expected) in [(SOON, 0), (LATER, 1), (LATER, 0)] {
        let aborts = count_aborts(&proxy, mischief);
        backend.remove_leftovers().unwrap();
        assert_eq!(*aborts.lock().unwrap(), expected, "{mischief:?}");
    }
    assert_eq!(backend.find_size(&pack(2)), Ok(None));
    assert_eq!(backend.get(&pack(1), 10).unwrap(), b"0123456789");
}

#[test]
fn what_will_not_pass_is_told_as_such_and_why() {
    let (proxy, backend) = behind_proxy(S3Timeouts::default());
    for (status, code, told) in [
        (403, "AccessDenied", "s3:PutObject"),
        (403, "SignatureDoesNotMatch", "credentials"),
        (403, "RequestTimeTooSkewed", "clocks"),
        (400, "InvalidRequest", "InvalidRequest"),
    ] {
        for (what, call) in CALLS {
            proxy.misbehave(move |_| Mischief::Refuse(status, code));
            let error = call(&backend).unwrap_err();
            assert!(!error.is_retryable(), "{what}, {code}: {error:?}");
            // The answer to a question about an object has no body, so no code.
            let is_head = what == "find_size";
            assert!(is_head || error.to_string().contains(told), "{what}, {code}: {error}");
            assert!(!error.to_string().contains(SECRET_KEY), "{error}");
        }
    }
    for (status, code) in [(507, ""), (403, "QuotaExceeded"), (507, "XMinioStorageFull")] {
        proxy.misbehave(move |_| Mischief::Refuse(status, code));
        assert_eq!(backend.put(&pack(1), b"p"), Err(BackendError::Full));
        assert_eq!(backend.put(&pack(1), &[1; 9 * MIB]), Err(BackendError::Full));
    }
}

#[test]
fn an_object_under_a_retention_rule_is_told_apart_from_a_missing_right() {
    let (proxy, backend) = behind_proxy(S3Timeouts::default());
    proxy.misbehave(|_| Mischief::Retain);
    assert_eq!(backend.delete(&pack(1)), Err(BackendError::Retained));
    proxy.misbehave(|request| match request.method() {
        "DELETE" => Mischief::Refuse(403, "AccessDenied"),
        _ => Mischief::Pass,
    });
    assert!(backend.delete(&pack(1)).unwrap_err().to_string().contains("s3:DeleteObject"));
    proxy.misbehave(|_| Mischief::Pass);
    assert_eq!(backend.get(&pack(1), 10).unwrap(), b"0123456789");
}

#[test]
fn whether_a_store_honours_conditions_is_found_out_and_nothing_depends_on_it() {
    let (proxy, backend) = behind_proxy(S3Timeouts::default());
    assert_eq!(backend.capabilities().conditional_put, ConditionalPut::Unknown);
    backend.prepare().unwrap();
    assert_eq!(backend.capabilities().conditional_put, ConditionalPut::Honoured);
    let other = in_proxy(&proxy, S3Timeouts::default());
    proxy.misbehave(|_| Mischief::ForgetCondition);
    a_repository_lives(Arc::new(other.clone()));
    assert_eq!(other.capabilities().conditional_put, ConditionalPut::Ignored);
    // A store that knows no conditions.
    let third = in_proxy(&proxy, S3Timeouts::default());
    proxy.misbehave(|request| match request.header("if-none-match") {
        Some(_) => Mischief::Refuse(501, "NotImplemented"),
        None => Mischief::Pass,
    });
    a_repository_lives(Arc::new(third.clone()));
    assert_eq!(third.capabilities().conditional_put, ConditionalPut::Ignored);
}

/// A place without a config behind the proxy.
fn in_proxy(proxy: &Proxy, timeouts: S3Timeouts) -> S3Backend {
    let options = S3Options { timeouts, ..options(proxy.endpoint()) };
    bucket(&options, Arc::new(credential())).repository(&fresh_prefix())
}

#[test]
fn rotated_credentials_are_taken_up_without_a_restart() {
    let (proxy, _) = behind_proxy(S3Timeouts::default());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("credentials");
    let write = |key: &str| {
        let text = format!("aws_access_key_id = {key}\naws_secret_access_key = {SECRET_KEY}\n");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    write("OLD");
    let options = options(proxy.endpoint());
    let bucket = bucket(&options, Arc::new(CredentialsFile::new(&path)));
    let backend = bucket.repository(&fresh_prefix());
    backend.put(&ObjectName::Config, b"config").unwrap();
    proxy.misbehave(|request| match request.header("authorization") {
        Some(signed) if signed.contains("Credential=NEW/") => Mischief::Pass,
        _ => Mischief::Refuse(403, "InvalidAccessKeyId"),
    });
    let error = backend.put(&pack(1), b"pack").unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("credentials"), "{error}");
    write("NEW");
    backend.put(&pack(1), b"pack").unwrap();
    assert_eq!(backend.get(&pack(1), 4).unwrap(), b"pack");
    // Without a file there are no credentials, and no request.
    fs::remove_file(&path).unwrap();
    assert!(backend.get(&pack(1), 4).unwrap_err().to_string().contains("credentials file"));
}

/// Made, written twice, read, checked.
fn a_repository_lives(backend: Arc<dyn Backend>) {
    let repo = create(Arc::clone(&backend)).unwrap();
    let first = [noise(1, 5 * MIB), vec![0; MIB]].concat();
    let mut second = first.clone();
    second[MIB + 5] ^= 1;
    let (one, _) = back_up(&repo, &Disk::new(first.clone()), None, &store_options(), "1").unwrap();
    let parent = volume(&repo, one).unwrap();
    let disk = Disk::new(second.clone());
    let (two, _) = back_up(&repo, &disk, Some(&parent), &store_options(), "2").unwrap();
    let repo = open(backend).unwrap();
    assert_restores(&repo, one, &first);
    assert_restores(&repo, two, &second);
    assert_clean(&repo);
}

#[test]
fn a_repository_lives_through_faults_of_every_kind() {
    let proxy = Proxy::before(Moto::shared().port());
    let backend = in_proxy(&proxy, impatient());
    let mut random = noise(77, 1 << 16).into_iter();
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let done = Arc::clone(&seen);
    proxy.misbehave(move |_| {
        // A third of all requests.
        let mischief = match random.next().unwrap() % 24 {
            0 => Mischief::Refuse(500, "InternalError"),
            1 => Mischief::Refuse(503, "SlowDown"),
            2 => Mischief::Refuse(429, "TooManyRequests"),
            3 => Mischief::RefuseAfterwards(503, ""),
            4 => Mischief::Reset,
            5 | 6 => Mischief::Truncate,
            7 if random.next().unwrap() < 64 => Mischief::Stall,
            _ => Mischief::Pass,
        };
        done.lock().unwrap().insert(format!("{mischief:?}"));
        mischief
    });
    a_repository_lives(Arc::new(layered(backend.clone())));
    assert!(seen.lock().unwrap().len() >= 6, "{seen:?}");
    proxy.misbehave(|_| Mischief::Pass);
    assert_clean(&open(Arc::new(backend)).unwrap());
}

/// A list that lacks what was written last is believed to be all there is, and the
/// repository stays whole: less is known, so more is stored, and nothing is lost.
#[test]
fn stale_lists_cost_space_and_never_data() {
    let proxy = Proxy::before(Moto::shared().port());
    let backend = in_proxy(&proxy, S3Timeouts::default());
    let shared: Arc<dyn Backend> = Arc::new(backend.clone());
    let bytes = noise(1, 3 * MIB);
    let disk = Disk::new(bytes.clone());
    let repo = create(Arc::clone(&shared)).unwrap();
    let (one, _) = back_up(&repo, &disk, None, &store_options(), "one").unwrap();
    proxy.misbehave(|request| {
        // Keys are needed to get in at all.
        let is_about_keys = request.target().contains("keys");
        if request.is_list() && !is_about_keys { Mischief::StaleList } else { Mischief::Pass }
    });
    let stale = open(Arc::clone(&shared)).unwrap();
    assert_eq!(stale.list_snapshots().unwrap(), []);
    let (two, stored) = back_up(&stale, &disk, None, &store_options(), "two").unwrap();
    assert!(stored.new_chunks > 0, "the index object was not seen, so all is stored anew");
    proxy.misbehave(|_| Mischief::Pass);
    let repo = open(shared).unwrap();
    assert_eq!(repo.list_snapshots().unwrap().len(), 2);
    for id in [one, two] {
        assert_restores(&repo, id, &bytes);
    }
    assert_clean(&repo);
}

/// Stock restic reads what we wrote into a bucket.
#[test]
fn restic_checks_and_restores_what_lies_in_a_bucket() {
    let moto = Moto::shared();
    let prefix = fresh_prefix();
    let options = options(moto.endpoint());
    let backend = bucket(&options, Arc::new(credential())).repository(&prefix);
    let repo = create(Arc::new(backend)).unwrap();
    // More than one pack, the first of them in parts.
    let bytes = [noise(3, 20 * MIB), vec![0; 3 * MIB]].concat();
    let disk = Disk::new(bytes.clone());
    let (id, _) = back_up(&repo, &disk, None, &store_options(), "one").unwrap();
    let place = format!("s3:{}/{BUCKET}/{prefix}", moto.endpoint());
    let restic = |arguments: &[&str]| {
        let output = std::process::Command::new("restic")
            .arg("--no-cache")
            .args(arguments)
            .env("RESTIC_REPOSITORY", &place)
            .env("RESTIC_PASSWORD", PASSWORD)
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .output()
            .expect("these tests need restic (Debian package restic)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    restic(&["check", "--read-data"]);
    let target = tempfile::tempdir().unwrap();
    restic(&["restore", &id.to_string(), "--target", target.path().to_str().unwrap()]);
    assert!(fs::read(target.path().join("vol/disk.raw")).unwrap() == bytes);
}
