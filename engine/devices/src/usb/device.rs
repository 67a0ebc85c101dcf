//! A USB device as a host controller's transactions see it: its address, its configuration, and the control pipe with the
//! standard requests. What it is besides is a [`Function`]: descriptors, class requests, interrupt endpoints. All devices are
//! full speed. Left out: data toggles (nothing is lost on this cable), halted endpoints, several configurations, remote
//! wake-up.
//! See: Universal Serial Bus Specification 2.0, chapters 8.5.3 and 9.

use engine_base::VmTime;
use engine_bus::RestoreError;
use engine_input::InputEvent;
use serde::{Deserialize, Serialize};

/// The most bytes that a control transfer may bring.
const MOST_CONTROL_BYTES: usize = 1024;
/// The most bytes of a packet on the control pipe; the device descriptor says so, too.
pub const CONTROL_PACKET_BYTES: usize = 8;

/// A request of the control pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Direction, type and recipient.
    pub kind: u8,
    pub request: u8,
    pub value: u16,
    pub index: u16,
    pub length: u16,
}

impl Setup {
    pub fn of(bytes: [u8; 8]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self { kind: bytes[0], request: bytes[1], value: word(2), index: word(4), length: word(6) }
    }

    fn is_to_host(self) -> bool {
        self.kind & 0x80 != 0
    }
}

/// A device's answer to a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Taken.
    Ack,
    /// Data for the host.
    Data(Vec<u8>),
    /// Nothing now.
    Nak,
    /// That cannot be done.
    Stall,
}

/// Descriptors, as the specification lays them out.
pub struct Descriptors {
    pub device: [u8; 18],
    /// Configuration, interfaces, endpoints and class descriptors in one.
    pub configuration: &'static [u8],
    /// Strings from number 1 on.
    pub strings: [&'static str; 3],
}

/// What makes a device more than a device: one kind of keyboard, pointer …
pub trait Function: Send {
    fn descriptors(&self) -> Descriptors;
    /// Bus reset, or another configuration.
    fn reset(&mut self);
    /// A class request, or a standard request to an interface, that brings data to the host; `None` stalls.
    fn control_in(&mut self, setup: Setup) -> Option<Vec<u8>>;
    /// The same with data from the host.
    fn control_out(&mut self, setup: Setup, data: &[u8]) -> Option<()>;
    /// The host asks an interrupt endpoint; `None` is "nothing new".
    fn interrupt_in(&mut self, endpoint: u8) -> Option<Vec<u8>>;
    /// Whether this kind of event is for it.
    fn takes(&self, event: &InputEvent) -> bool;
    /// One event.
    fn input(&mut self, event: &InputEvent);
    fn save(&self) -> SavedFunction;
    /// # Errors
    /// When the state is another function's, or impossible.
    fn restore(&mut self, saved: SavedFunction) -> Result<(), RestoreError>;
}

/// The saved forms of all functions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedFunction {
    Tablet(super::tablet::SavedTablet),
    Keyboard(super::keyboard::SavedKeyboard),
}

/// Where the control pipe stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Control {
    Idle,
    /// Data goes to the host: these bytes are left.
    ToHost(Vec<u8>),
    /// Data comes from the host.
    FromHost(Setup, Vec<u8>),
    /// The host is to ask for an empty packet, which says that all went well.
    Status,
    Stalled,
}

/// A device on a port.
pub struct UsbDevice {
    function: Box<dyn Function>,
    // State the guest can see; all of it is saved
    address: u8,
    /// Takes effect with the end of the request.
    new_address: Option<u8>,
    configuration: u8,
    remote_wakeup: bool,
    control: Control,
    // When the host last asked an interrupt endpoint: whether a driver is listening
    polled_at: Option<VmTime>,
}

/// The saved form.
#[derive(Serialize, Deserialize)]
pub struct SavedUsbDevice {
    address: u8,
    new_address: Option<u8>,
    configuration: u8,
    remote_wakeup: bool,
    control: Control,
    polled_at: Option<VmTime>,
    function: SavedFunction,
}

/// A driver that has not asked for so long is not there any more.
const LISTENING_NANOS: u64 = 1_000_000_000;

impl UsbDevice {
    pub fn new(function: Box<dyn Function>) -> Self {
        Self {
            function,
            address: 0,
            new_address: None,
            configuration: 0,
            remote_wakeup: false,
            control: Control::Idle,
            polled_at: None,
        }
    }

    pub fn address(&self) -> u8 {
        self.address
    }

    /// Bus reset.
    pub fn reset(&mut self) {
        let Self { function, address, new_address, configuration, remote_wakeup, control, polled_at } = self;
        function.reset();
        (*address, *new_address, *configuration, *remote_wakeup) = (0, None, 0, false);
        *control = Control::Idle;
        *polled_at = None;
    }

    /// Whether a driver has set the device up and asks it for news.
    pub fn wants(&self, event: &InputEvent, now: VmTime) -> bool {
        let is_listening = self.polled_at.is_some_and(|polled| now.nanos_since(polled) < LISTENING_NANOS);
        self.configuration != 0 && is_listening && self.function.takes(event)
    }

    pub fn input(&mut self, event: &InputEvent) {
        self.function.input(event);
    }

    /// SETUP.
    pub fn setup(&mut self, endpoint: u8, bytes: [u8; 8]) -> Answer {
        if endpoint != 0 {
            return Answer::Stall;
        }
        let setup = Setup::of(bytes);
        self.new_address = None;
        self.control = if setup.is_to_host() {
            match self.request_in(setup) {
                Some(mut data) => {
                    data.truncate(setup.length.into());
                    Control::ToHost(data)
                }
                None => Control::Stalled,
            }
        } else if usize::from(setup.length) > MOST_CONTROL_BYTES {
            Control::Stalled
        } else if setup.length > 0 {
            Control::FromHost(setup, Vec::new())
        } else {
            self.finish_out(setup, &[])
        };
        Answer::Ack
    }

    /// IN, for at most `most` bytes.
    pub fn data_in(&mut self, endpoint: u8, most: usize, now: VmTime) -> Answer {
        if endpoint != 0 {
            if self.configuration == 0 {
                return Answer::Stall;
            }
            self.polled_at = Some(now);
            return match self.function.interrupt_in(endpoint) {
                Some(data) => Answer::Data(data),
                None => Answer::Nak,
            };
        }
        match &mut self.control {
            Control::ToHost(left) => {
                let now = left.len().min(CONTROL_PACKET_BYTES).min(most);
                Answer::Data(left.drain(..now).collect())
            }
            Control::Status => {
                self.control = Control::Idle;
                self.address = self.new_address.take().unwrap_or(self.address);
                Answer::Data(Vec::new())
            }
            _ => Answer::Stall,
        }
    }

    /// OUT.
    pub fn data_out(&mut self, endpoint: u8, data: &[u8]) -> Answer {
        if endpoint != 0 {
            return Answer::Stall;
        }
        match &mut self.control {
            // The host ends the request, perhaps before it has read everything.
            Control::ToHost(_) => {
                self.control = Control::Idle;
                Answer::Ack
            }
            Control::FromHost(setup, received) => {
                let room = usize::from(setup.length) - received.len().min(setup.length.into());
                received.extend(&data[..data.len().min(room)]);
                if received.len() >= usize::from(setup.length) || data.len() < CONTROL_PACKET_BYTES {
                    let (setup, received) = (*setup, std::mem::take(received));
                    self.control = self.finish_out(setup, &received);
                }
                Answer::Ack
            }
            _ => Answer::Stall,
        }
    }

    /// Requests with data to the host: chapter 9.4, then the function's own.
    fn request_in(&mut self, setup: Setup) -> Option<Vec<u8>> {
        match (setup.kind, setup.request) {
            (0x80, 0) => Some(vec![u8::from(self.remote_wakeup) << 1, 0]), // GET_STATUS
            (0x81 | 0x82, 0) => Some(vec![0, 0]),
            (0x80, 6) => self.descriptor(setup.value),   // GET_DESCRIPTOR
            (0x80, 8) => Some(vec![self.configuration]), // GET_CONFIGURATION
            (0x81, 10) => Some(vec![0]),                 // GET_INTERFACE
            _ => self.function.control_in(setup),
        }
    }

    /// Requests without data, or with data from the host.
    fn finish_out(&mut self, setup: Setup, data: &[u8]) -> Control {
        let done = match (setup.kind, setup.request) {
            (0x00, 5) => {
                // SET_ADDRESS
                self.new_address = Some((setup.value & 0x7f) as u8);
                Some(())
            }
            (0x00, 9) if setup.value <= 1 => {
                // SET_CONFIGURATION
                self.configuration = setup.value as u8;
                self.polled_at = None;
                self.function.reset();
                Some(())
            }
            (0x00, 1 | 3) if setup.value == 1 => {
                // CLEAR_FEATURE, SET_FEATURE: remote wake-up
                self.remote_wakeup = setup.request == 3;
                Some(())
            }
            (0x02, 1 | 3) if setup.value == 0 => Some(()), // Endpoint halt
            (0x01, 11) if setup.value == 0 => Some(()),    // SET_INTERFACE
            (0x00..=0x02, _) => None,
            _ => self.function.control_out(setup, data),
        };
        if done.is_some() { Control::Status } else { Control::Stalled }
    }

    fn descriptor(&self, value: u16) -> Option<Vec<u8>> {
        let descriptors = self.function.descriptors();
        let [index, kind] = value.to_le_bytes();
        match (kind, index) {
            (1, 0) => Some(descriptors.device.to_vec()),
            (2, 0) => Some(descriptors.configuration.to_vec()),
            (3, 0) => Some(vec![4, 3, 0x09, 0x04]), // English (United States)
            (3, _) => {
                let text = descriptors.strings.get(usize::from(index) - 1)?;
                let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
                Some([&[units.len() as u8 + 2, 3], units.as_slice()].concat())
            }
            _ => None,
        }
    }

    pub fn save(&self) -> SavedUsbDevice {
        let Self { function, address, new_address, configuration, remote_wakeup, control, polled_at } = self;
        SavedUsbDevice {
            address: *address,
            new_address: *new_address,
            configuration: *configuration,
            remote_wakeup: *remote_wakeup,
            control: control.clone(),
            polled_at: *polled_at,
            function: function.save(),
        }
    }

    pub fn restore(&mut self, saved: SavedUsbDevice) -> Result<(), RestoreError> {
        let SavedUsbDevice { address, new_address, configuration, remote_wakeup, control, polled_at, function } = saved;
        let too_long = match &control {
            Control::ToHost(data) => data.len() > MOST_CONTROL_BYTES,
            Control::FromHost(setup, data) => {
                usize::from(setup.length) > MOST_CONTROL_BYTES || data.len() > usize::from(setup.length)
            }
            _ => false,
        };
        if too_long || address > 127 || new_address.is_some_and(|address| address > 127) || configuration > 1 {
            return Err(RestoreError::impossible("a USB device with an impossible address, configuration or request"));
        }
        self.function.restore(function)?;
        (self.address, self.new_address, self.configuration) = (address, new_address, configuration);
        (self.remote_wakeup, self.control, self.polled_at) = (remote_wakeup, control, polled_at);
        Ok(())
    }
}
