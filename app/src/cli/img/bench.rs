//! `bench`: how long a number of requests takes, so many at a time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::info::one_file;
use super::options::{Known, Options};
use super::source::{How, Source};
use super::units::parse_size;
use super::{Failure, say};

pub const SYNOPSIS: &str = "[-c count] [-d depth] [-f fmt] [--flush-interval=flush_interval] [-i aio] [-n] [--no-drain] [-o offset] \
[--pattern=pattern] [-q] [-s buffer_size] [-S step_size] [-t cache] [-w] [-U] filename";

/// Requests at a time are threads; more than this would measure those.
const MAX_THREADS: u64 = 64;

pub fn run(arguments: &[String]) -> Result<u8, Failure> {
    let known =
        Known { short: "c:d:f:i:no:qs:S:t:wU", long: &["flush-interval=", "pattern=", "no-drain", "image-opts", "force-share"] };
    let options = Options::parse(arguments, &known)?;
    let name = one_file(&options)?;
    let number = |option: &str, usual: u64| match options.value(option) {
        None => Ok(usual),
        Some(text) => parse_size(text).ok_or_else(|| Failure::new(format!("Invalid value for {option} specified: {text}"))),
    };
    let count = number("c", 75_000)?;
    let depth = number("d", 64)?.max(1);
    let offset = number("o", 0)?;
    let size = number("s", 4096)?.max(1);
    let step = match number("S", 0)? {
        0 => size,
        step => step,
    };
    let flush_interval = number("flush-interval", 0)?;
    let pattern = u8::try_from(number("pattern", 0)?).map_err(|_| Failure::new("Invalid pattern byte specified"))?;
    let writes = options.has("w");
    if flush_interval > 0 && !writes {
        return Err(Failure::new("--flush-interval is only available in write tests"));
    }
    if flush_interval > 0 && flush_interval < depth {
        return Err(Failure::new("Flush interval can't be smaller than depth"));
    }
    let how = if writes { How::writing() } else { How::reading() };
    let how = how.cached_by(options.value("t").unwrap_or("writeback"))?.asked_by(&options)?;
    let image = Source::named(name, options.value("f"), options.has("image-opts"))?.open(&how)?;
    if size > image.len() {
        return Err(Failure::new("The requests are larger than the image"));
    }
    let kind = if writes { "write" } else { "read" };
    say!(
        "Sending {count} {kind} requests, {size} bytes each, {depth} in parallel (starting at offset {offset}, step size {step})\n"
    );
    if flush_interval > 0 {
        say!("Sending flush every {flush_interval} requests\n");
    }
    let next = AtomicU64::new(0);
    let places = image.len() - size + 1;
    let work = || -> Result<(), Failure> {
        let mut buffer = vec![pattern; size as usize];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            // At the end of the disk the requests begin again at its start, as QEMU's do.
            let at = offset.wrapping_add(number.wrapping_mul(step)) % places;
            match writes {
                true => image.write_at(at, &buffer)?,
                false => image.read_at(at, &mut buffer)?,
            }
            if flush_interval > 0 && number % flush_interval == flush_interval - 1 {
                image.flush()?;
            }
        }
    };
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..depth.min(MAX_THREADS)).map(|_| scope.spawn(work)).collect();
        let ended = |thread: std::thread::ScopedJoinHandle<'_, Result<(), Failure>>| {
            thread.join().unwrap_or_else(|_| Err(Failure::new("a request ended unexpectedly")))
        };
        threads.into_iter().try_for_each(ended)
    })?;
    say!("Run completed in {:.3} seconds.\n", begun.elapsed().as_secs_f64());
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushes_come_no_more_often_than_requests_do_at_once() {
        let run = |line: &str| {
            run(&line.split(' ').map(str::to_owned).collect::<Vec<_>>()).map_err(|failure| failure.message).unwrap_err()
        };
        assert!(run("-w --flush-interval=8 x").contains("smaller than depth"));
        assert!(run("--flush-interval=64 x").contains("write tests"));
    }
}
