//! A proxy that misbehaves on demand, between an S3 client and a server.
//!
//! It takes one request per connection, so what it does to one is done to nobody else.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// What is done to a request or its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mischief {
    /// Nothing.
    Pass,
    /// The server is not asked; this is answered, with a code of S3.
    Refuse(u16, &'static str),
    /// The server does it, but this is answered.
    RefuseAfterwards(u16, &'static str),
    /// The connection is reset in the middle of the request.
    Reset,
    /// The answer's head promises all and half of the rest comes.
    Truncate,
    /// As before, but the connection stays open and silent.
    Stall,
    /// A list lacks its newest objects.
    StaleList,
    /// The server never learns of `If-None-Match`.
    ForgetCondition,
    /// The server says that it is another time.
    At(&'static str),
    /// A deletion is refused, and descriptions say that the object is locked.
    Retain,
}

/// A request as it came.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) head: Vec<String>,
    body_bytes: usize,
}

impl Request {
    pub(crate) fn method(&self) -> &str {
        self.head[0].split(' ').next().unwrap()
    }

    pub(crate) fn target(&self) -> &str {
        self.head[0].split(' ').nth(1).unwrap()
    }

    pub(crate) fn is_list(&self) -> bool {
        self.method() == "GET" && self.target().contains("list-type=2")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head[1..].iter().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

type Plan = Box<dyn FnMut(&Request) -> Mischief + Send>;

/// The running proxy; it ends with the process.
#[derive(Clone)]
pub(crate) struct Proxy {
    port: u16,
    plan: Arc<Mutex<Plan>>,
}

impl Proxy {
    /// Passes on everything to the server at `upstream` until told otherwise.
    pub(crate) fn before(upstream: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan: Plan = Box::new(|_| Mischief::Pass);
        let proxy = Self { port, plan: Arc::new(Mutex::new(plan)) };
        let serving = proxy.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let serving = serving.clone();
                // A client that went away is its own affair.
                thread::spawn(move || drop(serving.serve(client, upstream)));
            }
        });
        proxy
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on `plan` says what is done to each request.
    pub(crate) fn misbehave(&self, plan: impl FnMut(&Request) -> Mischief + Send + 'static) {
        *self.plan.lock().unwrap() = Box::new(plan);
    }

    /// Does this to the next request that `applies`, once.
    pub(crate) fn misbehave_once(
        &self,
        mischief: Mischief,
        applies: impl Fn(&Request) -> bool + Send + 'static,
    ) {
        let mut left = Some(mischief);
        self.misbehave(move |request| {
            if applies(request) { left.take().unwrap_or(Mischief::Pass) } else { Mischief::Pass }
        });
    }

    fn serve(&self, client: TcpStream, upstream: u16) -> io::Result<()> {
        let mut from = BufReader::new(client.try_clone()?);
        let mut to = client;
        let Some(mut request) = read_head(&mut from)? else { return Ok(()) };
        let mischief = (self.plan.lock().unwrap())(&request);
        if mischief == Mischief::Reset {
            // What is left unread when a socket closes becomes a reset.
            let mut some = vec![0; request.body_bytes / 2];
            from.read_exact(&mut some)?;
            return Ok(());
        }
        let mut body = vec![0; request.body_bytes];
        from.read_exact(&mut body)?;
        match mischief {
            Mischief::Refuse(status, code) => return refuse(&mut to, status, code),
            Mischief::Retain if request.method() == "DELETE" => {
                return refuse(&mut to, 403, "AccessDenied");
            }
            Mischief::ForgetCondition => {
                request.head.retain(|line| !line.to_lowercase().starts_with("if-none-match"));
            }
            Mischief::Pass
            | Mischief::RefuseAfterwards(..)
            | Mischief::Reset
            | Mischief::Truncate
            | Mischief::Stall
            | Mischief::StaleList
            | Mischief::At(_)
            | Mischief::Retain => {}
        }
        let (mut head, mut rest) = ask(upstream, &request, &body)?;
        match mischief {
            Mischief::RefuseAfterwards(status, code) => return refuse(&mut to, status, code),
            Mischief::Truncate | Mischief::Stall if rest.is_empty() => {
                // Without a body there is but the head to cut.
                to.write_all(&head.concat().as_bytes()[..9])?;
                return end(to, from, mischief);
            }
            Mischief::Truncate | Mischief::Stall => rest.truncate(rest.len() / 2),
            Mischief::StaleList if request.is_list() => {
                rest = without_newest(&rest);
                head.retain(|line| !line.to_lowercase().starts_with("content-length"));
                head.push(format!("Content-Length: {}\r\n", rest.len()));
            }
            Mischief::At(date) => {
                head.retain(|line| !line.to_lowercase().starts_with("date:"));
                head.push(format!("Date: {date}\r\n"));
            }
            Mischief::Retain => head.push("x-amz-object-lock-mode: COMPLIANCE\r\n".to_owned()),
            Mischief::Pass
            | Mischief::Refuse(..)
            | Mischief::Reset
            | Mischief::StaleList
            | Mischief::ForgetCondition => {}
        }
        to.write_all(head.concat().as_bytes())?;
        to.write_all(b"\r\n")?;
        to.write_all(&rest)?;
        end(to, from, mischief)
    }
}

/// Silence lasts until the client has had enough.
fn end(to: TcpStream, mut from: BufReader<TcpStream>, mischief: Mischief) -> io::Result<()> {
    if mischief == Mischief::Stall {
        from.read_to_end(&mut Vec::new())?;
    }
    to.shutdown(Shutdown::Both)
}

fn read_head(from: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let mut request = Request { head, body_bytes: 0 };
    if let Some(length) = request.header("content-length") {
        request.body_bytes = length.parse().unwrap();
    }
    assert!(request.header("transfer-encoding").is_none(), "{request:?}");
    Ok(Some(request))
}

/// The lines of the answer's head and its body.
fn ask(upstream: u16, request: &Request, body: &[u8]) -> io::Result<(Vec<String>, Vec<u8>)> {
    let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
    let mut text = String::new();
    for line in request.head.iter().filter(|line| !line.to_lowercase().starts_with("connection:")) {
        text.push_str(line);
        text.push_str("\r\n");
    }
    text.push_str("Connection: close\r\n\r\n");
    server.write_all(text.as_bytes())?;
    server.write_all(body)?;
    let mut from = BufReader::new(server);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        // One answer per connection, to the client as well.
        if !line.to_lowercase().starts_with("connection:") {
            head.push(line);
        }
    }
    head.push("Connection: close\r\n".to_owned());
    let mut rest = Vec::new();
    from.read_to_end(&mut rest)?;
    Ok((head, rest))
}

fn refuse(to: &mut TcpStream, status: u16, code: &str) -> io::Result<()> {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>by order</Message></Error>"
    );
    let length = body.len();
    write!(
        to,
        "HTTP/1.1 {status} Mischief\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// A list without the object that changed last, nor the one before.
fn without_newest(list: &[u8]) -> Vec<u8> {
    let mut text = String::from_utf8(list.to_vec()).unwrap();
    for _ in 0..2 {
        let newest = text
            .match_indices("<Contents>")
            .map(|(start, _)| {
                let end = start + text[start..].find("</Contents>").unwrap() + "</Contents>".len();
                let entry = &text[start..end];
                let changed = entry.split("<LastModified>").nth(1).unwrap().split('<').next();
                (changed.unwrap().to_owned(), start, end)
            })
            .max();
        let Some((_, start, end)) = newest else { break };
        text.replace_range(start..end, "");
    }
    text.into_bytes()
}
