// What the server is asked, with the token where it wants one.

const KEY = "tempsamp-token";

export class Refused extends Error {}

/** Remembered until the tab is closed; null forgets it. */
export function setToken(token) {
  if (token === null) sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, token);
}

function headers() {
  const token = sessionStorage.getItem(KEY);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

function address(path, parameters) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== "") query.set(name, value);
  }
  return `api/${path}?${query}`;
}

const AWAY = "The dash does not answer. Is tempsamp dash still running?";

/** What a status and a problem document say; `fields` are those of the request that are wrong. */
function refusal(status, problem) {
  if (status === 401) return new Refused("This dash asks for a token.");
  const error = new Error(problem.detail || `The dash answered with status ${status}.`);
  error.fields = (problem.errors || []).map(({ field }) => field);
  return error;
}

async function answer(path, parameters, signal, sent = {}) {
  let response;
  try {
    response = await fetch(address(path, parameters), { ...sent, headers: { ...headers(), ...sent.headers }, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(AWAY);
  }
  if (!response.ok) throw refusal(response.status, await response.json().catch(() => ({})));
  return response;
}

const posted = (body) => ({ method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });

/** JSON of a path below /api. */
export async function ask(path, parameters = {}, signal = undefined) {
  return (await answer(path, parameters, signal)).json();
}

/** An address for an <img>, or null where there is no picture. */
export async function picture(path, parameters, signal = undefined) {
  const response = await answer(path, parameters, signal);
  return response.status === 204 ? null : URL.createObjectURL(await response.blob());
}

/** JSON of what is sent as JSON. */
export async function tell(path, body, signal = undefined) {
  return (await answer(path, {}, signal, posted(body))).json();
}

/** Server-sent events that answer what is sent, until their end. */
export async function stream(path, body, { signal, on }) {
  const response = await answer(path, {}, signal, posted(body));
  try {
    await read(response.body.pipeThrough(new TextDecoderStream()).getReader(), on);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(AWAY);
  }
}

/** JSON of what answers a file; `progress(share)` while it is sent, which fetch does not tell. */
export function send(path, parameters, file, { signal, progress }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address(path, parameters));
    request.responseType = "json";
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => event.total && progress(event.loaded / event.total));
    request.addEventListener("load", () => (request.status === 200 ? resolve(request.response) : reject(refusal(request.status, request.response || {}))));
    request.addEventListener("error", () => reject(new Error(AWAY)));
    request.addEventListener("abort", () => reject(new DOMException("", "AbortError")));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(file);
  });
}

/** Server-sent events until `signal`; comes back by itself when the stream breaks. */
export async function listen(parameters, { signal, on, lost }) {
  for (let rest = 1; !signal.aborted; rest = Math.min(2 * rest, 30)) {
    try {
      const response = await answer("events", parameters, signal);
      rest = 1;
      await read(response.body.pipeThrough(new TextDecoderStream()).getReader(), on);
    } catch (error) {
      if (signal.aborted) return;
    }
    lost();
    await new Promise((resolve) => setTimeout(resolve, 1000 * rest));
  }
}

async function read(reader, on) {
  for (let text = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    if (!value.includes("\n")) continue;  // megabytes of one event come in many pieces
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const name = /^event: (.*)$/m.exec(event);
      const data = /^data: (.*)$/m.exec(event);
      if (name && data) on(name[1], JSON.parse(data[1]));
    }
  }
}
