// L'atelier : le modèle du livre dessine dans la page. Rien n'est demandé à un serveur, rien ne lui est envoyé.
"use strict";

const atelier = (() => {
  const folder = new URL(".", document.currentScript.src);
  const parcels = {}; // colis reçus, en base64, morceau par morceau
  const fround = Math.fround; // PyTorch compte sur 32 bits : pour tirer les mêmes jetons, nous aussi
  let settings; // posés par reglages.js
  let loading; // la promesse du moteur et des deux graphes
  let ready = false; // tenue

  // --- recevoir ce que la construction du livre a rangé ---------------------------------------------

  function prepare(given) {
    settings = given;
    settings.ranks = new Map(given.merges.map((pair, rank) => [pair.join(" "), rank]));
    settings.knownWords = new Set(given.known);
    for (const place of document.querySelectorAll("div.atelier")) furnish(place);
  }

  function receive(name, piece) {
    (parcels[name] ??= []).push(piece);
  }

  function script(name) {
    return new Promise((done, fail) => {
      const tag = document.createElement("script");
      tag.src = new URL(name, folder);
      tag.onload = done;
      tag.onerror = () => fail(new Error(`le fichier « ${name} » manque à côté de la page`));
      document.head.append(tag);
    });
  }

  async function unpack(name) {
    const bytes = Uint8Array.from(atob(parcels[name].join("")), (letter) => letter.charCodeAt(0));
    delete parcels[name];
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  /** Le moteur et les deux graphes ; `progress` reçoit les octets chargés, puis leur total. */
  function load(progress = () => {}) {
    loading ??= start(progress).catch((error) => {
      loading = undefined; // une autre tentative reprendra là où celle-ci s'est arrêtée
      throw error;
    });
    return loading;
  }

  async function start(progress) {
    const total = settings.files.reduce((sum, file) => sum + file.bytes, 0);
    let loaded = 0;
    for (const file of settings.files) {
      if (!file.here) await script(file.name);
      file.here = true;
      loaded += file.bytes;
      progress(loaded, total);
    }
    const module = new Blob([await unpack("liaison")], { type: "text/javascript" });
    ort.env.wasm.numThreads = 1; // plusieurs fils demandent un serveur et des en-têtes
    ort.env.wasm.wasmBinary = await unpack("moteur");
    ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(module) };
    const writer = await ort.InferenceSession.create(await unpack("ecriture"));
    const painter = await ort.InferenceSession.create(await unpack("peinture"));
    ready = true;
    return { writer, painter };
  }

  // --- lire : le segmenteur de minidalle/text.py ----------------------------------------------------

  const SPACES = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/u;
  const WORD =
    /(?:[cdjlmnst]|(?:jus|lors|puis|quoi|quel)?qu)'|[\p{L}\p{N}_]+(?:'[\p{L}\p{N}_]+)*|[^\p{L}\p{N}_ ]/gu;

  function words(text) {
    const lower = text.replace(/\p{Cs}/gu, "\ufffd").normalize("NFC").toLowerCase().normalize("NFC");
    const plain = lower.replace(/[’ʼ]/g, "'").replaceAll("▁", "_");
    return plain.split(SPACES).filter(Boolean).join(" ").match(WORD) ?? [];
  }

  /** Jetons d'un mot : ses lettres, dont on soude les paires dans l'ordre où le segmenteur les a apprises. */
  function pieces(word) {
    let parts = [...`▁${word}`].map((letter) => (letter in settings.vocabulary ? letter : "<unk>"));
    parts = parts.filter((part, i) => part !== "<unk>" || parts[i - 1] !== "<unk>");
    for (;;) {
      let best = Infinity, place = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = settings.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < best) [best, place] = [rank, i];
      }
      if (place < 0) return parts.map((part) => settings.vocabulary[part]);
      parts.splice(place, 2, parts[place] + parts[place + 1]);
    }
  }

  /** Jetons d'une phrase, mots inconnus, et mots de la fin laissés de côté faute de place. */
  function encode(text) {
    const ids = [], read = new Set(), left = words(text);
    while (left.length) {
      const found = pieces(left[0]);
      if (ids.length + found.length > settings.textLength) break; // un mot qui ne tient pas tombe entier
      ids.push(...found);
      read.add(left.shift());
    }
    return { ids, unknown: [...read].filter((word) => !settings.knownWords.has(word)), dropped: left };
  }

  // --- tirer : minidalle/sampling.py ----------------------------------------------------------------

  /** Nombres de [0 ; 1[ : le Mersenne Twister de PyTorch, pour que la même graine donne le même dessin. */
  function* dice(seed) {
    const state = new Uint32Array(624);
    state[0] = seed;
    for (let i = 1; i < 624; i++) {
      state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
    }
    let place = 624;
    const next = () => {
      if (place === 624) {
        for (let i = 0; i < 624; i++) {
          const mixed = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
          state[i] = state[(i + 397) % 624] ^ (mixed >>> 1) ^ (mixed & 1 ? 0x9908b0df : 0);
        }
        place = 0;
      }
      let x = state[place++];
      x ^= x >>> 11;
      x ^= (x << 7) & 0x9d2c5680;
      x ^= (x << 15) & 0xefc60000;
      return (x ^ (x >>> 18)) >>> 0;
    };
    for (;;) yield ((next() & 0x1fffff) * 2 ** 32 + next()) * 2 ** -53;
  }

  const sum = (numbers) => numbers.reduce((total, x) => total + x, 0);

  /** Loi dans laquelle on tire : température, puis noyau de probabilité `topP`. */
  function law(logits, temperature) {
    const top = Math.max(...logits);
    const heights = Array.from(logits, (logit) => Math.exp(fround(logit - top) / temperature));
    const total = sum(heights);
    let before = 0, edge = 0;
    for (const height of [...heights].sort((a, b) => b - a)) {
      if (before >= settings.topP * total) break;
      edge = height;
      before += height;
    }
    const kept = heights.map((height) => (height < edge ? 0 : height));
    const rest = sum(kept);
    return kept.map((height) => fround(height / rest));
  }

  function draw(law, uniform) {
    let left = uniform * sum(law);
    const token = law.findIndex((p) => (left -= p) < 0);
    return token < 0 ? law.length - 1 : token;
  }

  // --- écrire : un jeton, puis le suivant -----------------------------------------------------------

  const pause = () => new Promise((go) => setTimeout(go)); // la page respire entre deux jetons

  /** Écrit une image ; rend, après chaque position lue, les jetons écrits jusque-là. */
  async function* write(ids, { seed = 0, temperature = 1, guidance = settings.guidance } = {}) {
    const { writer } = await load();
    const { textLength, textVocabulary, imageVocabulary, grid } = settings;
    const lines = guidance === 1 ? [ids] : [ids, []]; // avec la phrase, et sans elle
    const sizes = { B: lines.length, S: 0 };
    let caches = {};
    for (const [name, shape] of Object.entries(settings.caches)) {
      caches[name] = new ort.Tensor("float32", [], shape.map((side) => sizes[side] ?? side));
    }
    const read = async (pairs) => {
      const column = (i) => new ort.Tensor("int32", pairs.map((pair) => pair[i]), [pairs.length]);
      const { logits, ...rest } = await writer.run({ token: column(0), place: column(1), ...caches });
      caches = Object.fromEntries(Object.keys(caches).map((name) => [name, rest[`new_${name}`]]));
      const [told, untold] = [0, 1].map((i) => logits.data.subarray(i * imageVocabulary, (i + 1) * imageVocabulary));
      if (guidance === 1) return told;
      return told.map((logit, k) => untold[k] + fround(guidance * fround(logit - untold[k])));
    };
    for (let i = 0; i < textLength; i++) {
      await read(lines.map((line) => (line[i] ? [line[i], i] : [0, textLength + i])));
      yield [];
    }
    const tokens = [], roll = dice(seed);
    let last = imageVocabulary; // le jeton de départ
    while (tokens.length < grid[0] * grid[1]) {
      const pair = [textVocabulary + last, 2 * textLength + tokens.length];
      const logits = await read(lines.map(() => pair));
      last = temperature ? draw(law(logits, temperature), roll.next().value) : logits.indexOf(Math.max(...logits));
      tokens.push(last);
      yield tokens;
    }
  }

  /** Tous les jetons d'une phrase ; sans `temperature`, le plus probable à chaque case. */
  async function tokens(text, options) {
    let written = [];
    for await (written of write(encode(text).ids, { temperature: 0, ...options })) await pause();
    return written;
  }

  /** Peint les jetons sur une toile ; les cases à venir font un damier gris (voir TextToImage.film). */
  async function paint(canvas, written) {
    const { painter } = await load();
    const { grid, factor } = settings;
    const cells = Array.from({ length: grid[0] * grid[1] }, (_, i) => written[i] ?? written[0]);
    const { pixels } = await painter.run({ tokens: new ort.Tensor("int32", cells, grid) });
    const [height, width] = pixels.dims;
    const image = new ImageData(width, height);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const [row, column] = [Math.floor(y / factor), Math.floor(x / factor)];
        const here = y * width + x, grey = (row + column) % 2 ? 168 : 148;
        const drawn = row * grid[1] + column < written.length;
        for (let c = 0; c < 3; c++) image.data[4 * here + c] = drawn ? pixels.data[3 * here + c] : grey;
        image.data[4 * here + 3] = 255;
      }
    }
    [canvas.width, canvas.height] = [width, height];
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // --- la page --------------------------------------------------------------------------------------

  // Le plus petit programme qui emploie les instructions vectorielles du moteur.
  const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

  /** Pourquoi rien ne peut être dessiné ici, ou une chaîne vide. */
  function obstacle() {
    const advice = "essayez une version récente de Firefox, de Chrome, d’Edge ou de Safari.";
    if (settings.missing) return `L’atelier n’a pas pu être préparé : ${settings.missing}. Reconstruisez le livre avec npm et un accès au réseau.`;
    if (typeof WebAssembly !== "object") return `Ce navigateur n’exécute pas WebAssembly : ${advice}`;
    if (!WebAssembly.validate(new Uint8Array(SIMD))) return `Ce navigateur ignore les instructions vectorielles de WebAssembly : ${advice}`;
    if (typeof DecompressionStream !== "function") return `Ce navigateur ne sait pas décompresser le modèle : ${advice}`;
    return "";
  }

  const FORM = `
    <form class="atelier-form">
      <label class="atelier-wide">Que dessiner ? <input name="text" required maxlength="200" autocomplete="off"></label>
      <label>Graine <input name="seed" type="number" min="0" max="4294967295" step="1" required></label>
      <label>Température <output name="heat"></output>
        <input name="temperature" type="range" min="0" max="2" step="0.1"></label>
      <label>Guidage <output name="guide"></output>
        <input name="guidance" type="range" min="0" max="4" step="0.5"></label>
      <p class="atelier-wide atelier-buttons">
        <button type="submit">Dessiner</button>
        <button type="button" name="again">Graine suivante</button>
        <button type="button" name="cancel" disabled>Annuler</button>
      </p>
    </form>
    <canvas class="atelier-canvas" role="img" width="64" height="64"></canvas>
    <p><progress class="atelier-progress" value="0" max="1" aria-label="Avancement"></progress></p>
    <p class="atelier-status" role="status"></p>
    <p class="atelier-words" role="status"></p>`;

  /** Les espaces insécables, comme _ext/francais.py les pose dans le texte du livre. */
  const typeset = (text) =>
    text.replace(/« /g, "«\u00a0").replace(/ (?=[»:]|Mo)/g, "\u00a0").replace(/ (?=[;!?])/g, "\u202f");
  const number = (value, digits) => value.toLocaleString("fr-FR", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const megabytes = (bytes) => number(bytes / 1e6, 1);
  const list = (found) => found.map((word) => `« ${word} »`).join(", ");

  function furnish(place) {
    const wall = obstacle();
    if (wall) {
      place.prepend(Object.assign(document.createElement("p"), { className: "atelier-obstacle", textContent: typeset(wall) }));
      return;
    }
    place.innerHTML = typeset(FORM);
    const find = (name) => place.querySelector(`.atelier-${name}`);
    const form = find("form"), canvas = find("canvas"), bar = find("progress"), fields = form.elements;
    const total = settings.files.reduce((sum, file) => sum + file.bytes, 0);
    let turn = 0; // le numéro du dessin en cours : en changer, c'est l'annuler
    let busy = false;

    const say = (text) => (find("status").textContent = typeset(text));
    const describe = (text) => canvas.setAttribute("aria-label", typeset(text));

    function tell() {
      const [temperature, guidance] = [fields.temperature.valueAsNumber, fields.guidance.valueAsNumber];
      fields.heat.value = typeset(temperature ? number(temperature, 1) : "0 : le plus probable");
      fields.guide.value = typeset(guidance ? number(guidance, 1) : "0 : sans la phrase");
    }

    function name() {
      const { unknown, dropped } = encode(fields.text.value);
      const lines = [];
      if (unknown.length) lines.push(`Mots que le modèle n’a jamais lus : ${list(unknown)}.`);
      if (dropped.length) lines.push(`Mots laissés de côté, faute de place : ${list(dropped)}.`);
      find("words").textContent = typeset(lines.join(" "));
    }

    function work(now) {
      busy = now;
      fields.cancel.disabled = !now;
      place.setAttribute("aria-busy", now);
    }

    async function run() {
      const mine = ++turn, text = fields.text.value, { ids, dropped } = encode(text);
      name();
      if (!ids.length) {
        say(dropped.length ? "Le premier mot est trop long : écrivez-le autrement." : "Écrivez quelque chose à dessiner, par exemple « un mouton ».");
        return;
      }
      const options = { seed: fields.seed.valueAsNumber };
      for (const key of ["temperature", "guidance"]) options[key] = fields[key].valueAsNumber;
      const cells = settings.grid[0] * settings.grid[1], steps = settings.textLength + cells;
      work(true);
      let written = [], step = 0;
      try {
        say(ready ? "Le modèle lit la phrase…" : `Chargement du moteur et du modèle, ${megabytes(total)} Mo…`);
        await load((loaded) => (bar.value = loaded / total));
        if (mine !== turn) return;
        say("Le modèle dessine…");
        for await (written of write(ids, options)) {
          bar.value = ++step / steps;
          // Peindre coûte autant que plusieurs jetons : une demi-ligne à la fois suffit à l'œil.
          if (written.length % Math.ceil(settings.grid[1] / 2) === 0 && written.length) await paint(canvas, written);
          await pause();
          if (mine !== turn) return;
        }
        describe(`Dessin de « ${text} », graine ${options.seed}.`);
        say(`Fini : « ${text} », graine ${options.seed}, ${cells} jetons.`);
      } catch (error) {
        if (mine === turn) say(`Le dessin a échoué : ${error.message}. Rechargez la page, ou essayez un autre navigateur.`);
      } finally {
        if (mine === turn) work(false);
      }
    }

    function cancel() {
      if (!busy) return;
      turn++;
      work(false);
      bar.value = 0;
      describe("Dessin inachevé.");
      say("Annulé.");
    }

    fields.text.value = "un mouton à gauche d’un carré bleu";
    fields.seed.value = 1;
    fields.temperature.value = 1;
    fields.guidance.value = settings.guidance;
    describe("Toile encore vide.");
    say(`Au premier dessin, la page charge ${megabytes(total)} Mo, moteur compris, depuis son propre dossier.`);
    tell();
    form.addEventListener("input", tell);
    fields.text.addEventListener("change", name);
    fields.cancel.addEventListener("click", cancel);
    fields.again.addEventListener("click", () => {
      fields.seed.value = ((fields.seed.valueAsNumber || 0) + 1) % 2 ** 32;
      form.requestSubmit();
    });
    form.addEventListener("keydown", (event) => event.key === "Escape" && cancel());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      run();
    });
  }

  return { prepare, receive, encode, tokens, paint, dice };
})();
