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

async function answer(path, parameters, signal) {
  let response;
  try {
    response = await fetch(address(path, parameters), { headers: headers(), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The dash does not answer. Is tempsamp dash still running?");
  }
  if (response.status === 401 || response.status === 403) throw new Refused("This dash asks for a token.");
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Error(problem.detail || `The dash answered with status ${response.status}.`);
  }
  return response;
}

/** JSON of a path below /api. */
export async function ask(path, parameters = {}, signal = undefined) {
  return (await answer(path, parameters, signal)).json();
}

/** An address for an <img>, or null where there is no picture. */
export async function picture(path, parameters, signal = undefined) {
  const response = await answer(path, parameters, signal);
  return response.status === 204 ? null : URL.createObjectURL(await response.blob());
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
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const event of events) {
      const name = /^event: (.*)$/m.exec(event);
      const data = /^data: (.*)$/m.exec(event);
      if (name && data) on(name[1], JSON.parse(data[1]));
    }
  }
}
