//! The guest's picture as a PNG file: screenshots at full size, and the small picture that the manager shows. Both are
//! written to a temporary name first, so that nobody ever reads half of one.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError, bounded};
use engine_base::spawn_guarded;
use engine_display::{Picture, Screen};

const THUMBNAIL_WIDTH: u32 = 400;
/// A picture that changes all the time is kept at most this often.
const PAUSE: Duration = Duration::from_secs(10);

/// Writes a picture as PNG.
///
/// # Errors
/// When the host refuses, for example for want of space.
pub fn write_png(picture: &Picture, path: &Path) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    let written = encode(picture, &unfinished).and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        fs::remove_file(&unfinished).ok(); // The error that counts is on its way.
    }
    written
}

fn encode(picture: &Picture, path: &Path) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut encoder = png::Encoder::new(&mut file, picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let bytes: Vec<u8> = picture
        .pixels
        .iter()
        .flat_map(|pixel| {
            let [_, red, green, blue] = pixel.to_be_bytes();
            [red, green, blue]
        })
        .collect();
    let mut writer = encoder.write_header().map_err(io::Error::other)?;
    writer.write_image_data(&bytes).map_err(io::Error::other)?;
    writer.finish().map_err(io::Error::other)?;
    file.flush()
}

/// The picture, made smaller by averaging; one that is small already stays as it is.
pub fn shrink(picture: &Picture, most_width: u32) -> Picture {
    if picture.width <= most_width || picture.height == 0 {
        return picture.clone();
    }
    let width = most_width;
    let height = (u64::from(picture.height) * u64::from(width) / u64::from(picture.width)).max(1) as u32;
    let mut pixels = Vec::with_capacity(width as usize * height as usize);
    let span = |at: u32, small: u32, large: u32| {
        let from = u64::from(at) * u64::from(large) / u64::from(small);
        let to = (u64::from(at + 1) * u64::from(large)).div_ceil(u64::from(small));
        from as usize..to as usize
    };
    for y in 0..height {
        let rows = span(y, height, picture.height);
        for x in 0..width {
            let columns = span(x, width, picture.width);
            let (mut sum, mut count) = ([0u32; 3], 0);
            for row in rows.clone() {
                let start = row * picture.width as usize;
                for pixel in &picture.pixels[start + columns.start..start + columns.end] {
                    let [_, red, green, blue] = pixel.to_be_bytes();
                    sum = [sum[0] + u32::from(red), sum[1] + u32::from(green), sum[2] + u32::from(blue)];
                    count += 1;
                }
            }
            let [red, green, blue] = sum.map(|sum| sum / count.max(1));
            pixels.push(red << 16 | green << 8 | blue);
        }
    }
    Picture { width, height, pixels }
}

/// Keeps the manager's small picture up to date, from a thread that sleeps while nothing changes.
pub struct ThumbnailWriter {
    changed: Sender<()>,
}

impl ThumbnailWriter {
    /// Starts the thread `thumbnail`, which ends when this is dropped.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn start(screen: Screen, path: PathBuf) -> io::Result<Self> {
        let (changed, changes) = bounded(1);
        spawn_guarded(
            "thumbnail",
            move || {
                while changes.recv().is_ok() {
                    if let Err(error) = write_png(&shrink(&screen.picture(), THUMBNAIL_WIDTH), &path) {
                        // The machine runs on without it; the manager then shows an older one.
                        tracing::warn!(%error, path = %path.display(), "the small picture could not be written");
                    }
                    std::thread::sleep(PAUSE);
                }
            },
            |_| {},
        )?;
        Ok(Self { changed })
    }

    /// For the screen's wake call: something has changed.
    pub fn waker(&self) -> impl Fn() + Send + Sync + use<> {
        let changed = self.changed.clone();
        move || match changed.try_send(()) {
            // Full: the thread will look anyway.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_picture_reads_back_with_its_colours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("screen.png");
        let picture = Picture { width: 2, height: 1, pixels: vec![0x00ff_8001, 0x0000_0203] };
        write_png(&picture, &path).unwrap();
        let mut reader = png::Decoder::new(io::BufReader::new(File::open(&path).unwrap())).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut bytes).unwrap();
        assert_eq!(bytes, [0xff, 0x80, 0x01, 0x00, 0x02, 0x03]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_smaller_picture_is_the_average_of_the_larger() {
        let mut picture = Picture::black(4, 2);
        picture.pixels = vec![0x10, 0x30, 0, 0, 0x10, 0x30, 0, 0];
        let small = shrink(&picture, 2);
        assert_eq!((small.width, small.height, small.pixels), (2, 1, vec![0x20, 0]));
        assert_eq!(shrink(&picture, 100), picture);
    }

    #[test]
    fn a_picture_that_cannot_be_written_is_an_error_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write_png(&Picture::black(1, 1), &folder.path().join("no/such/folder.png")).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
