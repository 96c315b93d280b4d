"""What runs in a visitor's browser: the styles of the page, and its few scripts.

PICK     a click on a small image tells which one it was
PAINT    a brush on the large image, while the tab Inpaint is open
DROP     a file that is dropped anywhere on the page goes to the box for one's own image
GIVE     an image of the visitor's own, sent within the page: no file is left anywhere
MASK     what was painted, as the last input of the button's call
"""

from hebm_sample.demo.photos import MAX_UPLOAD_BYTES

__all__ = ["CSS", "DICE", "DROP", "GIVE", "MASK", "PAINT", "PICK", "TO_CONTROLS"]

# As many seeds as the box names, from a random one on.
DICE = """(text) => {
    const first = Math.floor(Math.random() * 1000000), range = text.split('-');
    const more = range.length === 2 ? Math.min(8, range[1] - range[0]) : 0;
    return more > 0 ? `${first}-${first + more}` : `${first}`;
}"""

TO_CONTROLS = """() => {
    if (window.innerWidth < 761)
        document.querySelector('#hebm-controls [role=tablist]')
            .scrollIntoView({behavior: 'smooth'});
}"""

PICK = """
element.addEventListener('click', (event) => {
    const thumb = event.target.closest('[data-pick]');
    if (thumb) trigger('select', {index: Number(thumb.dataset.pick)});
});
"""

# What misses the box would take the page's place in the window. The box is there once it is open.
DROP = """
const carries = (event) => event.dataTransfer && [...event.dataTransfer.types].includes('Files');
const box = () => document.querySelector('#hebm-upload input[type=file]');
const hand = (files, tries) => {
    if (!box()) { if (tries) setTimeout(hand, 50, files, tries - 1); return; }
    box().files = files;
    box().dispatchEvent(new Event('change', {bubbles: true}));
};
document.addEventListener('dragover', (event) => { if (carries(event)) event.preventDefault(); });
document.addEventListener('drop', (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    if (!box()) document.querySelector('#hebm-own button').click();
    hand(event.dataTransfer.files, 100);
});
"""

# The mask outlives the canvas that shows it, which is new with every image.
PAINT = """
const mask = document.createElement('canvas');
const canvas = () => element.querySelector('canvas');
const open = () => document.querySelector('#hebm-inpaint')?.offsetParent;
let last = null;
const show = () => {
    const seen = canvas();
    if (!seen) return;
    if (mask.width !== seen.width) mask.width = mask.height = seen.width;
    const context = seen.getContext('2d');
    context.clearRect(0, 0, seen.width, seen.height);
    context.drawImage(mask, 0, 0);
};
const place = (event) => {
    const box = canvas().getBoundingClientRect(), scale = mask.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
};
const stroke = (to) => {
    const value = (id) => document.querySelector(`#${id} input`);
    const context = mask.getContext('2d');
    context.globalCompositeOperation =
        value('hebm-erase').checked ? 'destination-out' : 'source-over';
    context.strokeStyle = '#d0803a';
    context.lineCap = 'round';
    context.lineWidth = mask.width * Number(value('hebm-brush').value) / 100;
    context.beginPath();
    context.moveTo(...last);
    context.lineTo(...to);
    context.stroke();
    last = to;
    show();
};
element.addEventListener('pointerdown', (event) => {
    if (event.target !== canvas() || !open()) return;
    event.preventDefault();
    rest.remove('hebm-rest');
    canvas().setPointerCapture(event.pointerId);
    last = place(event);
    stroke(last);
});
element.addEventListener('pointermove', (event) => { if (last) stroke(place(event)); });
for (const end of ['pointerup', 'pointercancel'])
    element.addEventListener(end, () => { last = null; });
// The paint rests while its fillings are looked at, and is seen again on images of another kind.
const rest = document.documentElement.classList;
const images = () =>
    [...new Set([...element.querySelectorAll('img')].map((image) => image.src))].sort().join();
let before = null, fillings = null;
new MutationObserver(() => {
    const now = images();
    if (rest.contains('hebm-rest') && now !== before && now !== fillings) {
        if (fillings === null) fillings = now;
        else rest.remove('hebm-rest');
    }
    show();
}).observe(element, {childList: true, subtree: true});
window.hebmMask = {
    clear: () => {
        mask.width = mask.width;
        rest.remove('hebm-rest');
        show();
    },
    png: () => {
        const seen = mask.getContext('2d').getImageData(0, 0, mask.width, mask.height);
        for (let i = 0; i < seen.data.length; i += 4) {
            seen.data.fill(seen.data[i + 3] < 128 ? 0 : 255, i, i + 3);
            seen.data[i + 3] = 255;
        }
        const flat = document.createElement('canvas');
        flat.width = flat.height = mask.width;
        flat.getContext('2d').putImageData(seen, 0, 0);
        [before, fillings] = [images(), null];
        rest.add('hebm-rest');
        return flat.toDataURL('image/png').split(',')[1];
    },
};
show();
"""

MASK = "(...values) => [...values.slice(0, -1), window.hebmMask.png()]"

GIVE = (
    """
const send = (file) => {
    if (!file) return;
    if (file.size > MOST) { trigger('give', {name: file.name, size: file.size}); return; }
    const reader = new FileReader();
    reader.onload = () =>
        trigger('give', {name: file.name, data: reader.result.split(',')[1] || ''});
    reader.readAsDataURL(file);
};
element.addEventListener('change', (event) => {
    send(event.target.files[0]);
    event.target.value = '';
});
element.addEventListener('click', (event) => {
    const sample = event.target.closest('[data-sample]');
    if (sample) trigger('give', {sample: Number(sample.dataset.sample)});
});
"""
).replace("MOST", str(MAX_UPLOAD_BYTES))

CSS = """
.gradio-container { width: 100%; max-width: 1240px !important; margin: 0 auto !important; }
:is(#hebm-images, #hebm-facts, #hebm-status, #hebm-upload),
:is(#hebm-images, #hebm-facts, #hebm-status, #hebm-upload) > div { padding: 0 !important; }
#hebm-line { align-items: center; }
.hebm-condition { display: grid !important; gap: 8px !important; align-items: start;
    grid-template-columns: repeat(2, minmax(0, 1fr)); }
.hebm-condition > * { min-width: 0 !important; }
.hebm-seeds { align-items: flex-end !important; }
.hebm-seeds button { height: 42px; margin-bottom: 10px; }
.hebm-head h1 { font-size: 1.5rem; font-weight: 650; margin: 0; letter-spacing: -0.01em; }
.hebm-head p { margin: .15rem 0 0; color: var(--body-text-color-subdued); }
.hebm-note { margin: 0; font-size: .8rem; line-height: 1.35;
    color: var(--body-text-color-subdued); }
.hebm-status { margin: 0; padding: .5rem .75rem; border-radius: 8px; min-height: 2.4rem;
    overflow-wrap: anywhere; background: var(--background-fill-secondary); }
.hebm-error { background: #b3261e; color: #fff; }
#hebm-view { align-items: start; }
#hebm-controls .tab-container button { padding: 0 9px !important; }
.hebm-big { margin: 0; }
.hebm-big > div { position: relative; max-width: 512px; margin: 0 auto; }
.hebm-big img { width: 100%; display: block; border-radius: 12px; }
.hebm-big canvas { display: none; position: absolute; inset: 0; width: 100%; height: 100%;
    border-radius: 12px; opacity: .6; touch-action: none; cursor: crosshair;
    image-rendering: pixelated; }
body:has(#hebm-tab-inpaint-button[aria-selected=true]) .hebm-big canvas { display: block; }
.hebm-rest .hebm-big canvas { opacity: 0; }
.hebm-big figcaption { text-align: center; font-size: .85rem; margin-top: .4rem;
    color: var(--body-text-color-subdued); }
.hebm-facts { display: grid; gap: .9rem; }
.hebm-fold { display: none !important; }
.hebm-chart { width: 100%; border-collapse: collapse; font-size: .85rem; table-layout: fixed; }
.hebm-chart caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
.hebm-chart caption small { display: block; font-weight: 400;
    color: var(--body-text-color-subdued); }
.hebm-chart th { text-align: left; font-weight: 500; width: 4.6em; white-space: nowrap; }
.hebm-predictions th { width: 7.6em; overflow: hidden; text-overflow: ellipsis; }
.hebm-chart th small { color: var(--body-text-color-subdued); font-weight: 400; }
.hebm-chart, .hebm-chart :is(tr, td, th) { border: 0 !important; }
.hebm-chart td, .hebm-chart th { padding: 3px 0 !important; }
.hebm-chart td:last-child { text-align: right; width: 3.6em; font-variant-numeric: tabular-nums; }
.hebm-track { position: relative; height: 1.3em; }
.hebm-track i { position: absolute; top: 22%; height: 56%; border-radius: 3px; min-width: 1px; }
.hebm-track b { position: absolute; top: 0; bottom: 0; width: 1px;
    background: var(--body-text-color-subdued); opacity: .5; }
.hebm-low { background: #2f7d6d; } .hebm-high { background: #d0803a; }
.hebm-download { display: block; text-align: center; padding: .55rem; border-radius: 8px;
    text-decoration: none !important; font-weight: 600; color: var(--body-text-color) !important;
    border: 1px solid var(--border-color-primary); }
.hebm-download:hover { background: var(--background-fill-secondary); }
.hebm-thumbs { display: grid; gap: .5rem; margin-top: 1rem;
    grid-template-columns: repeat(auto-fill, minmax(80px, 1fr)); }
.hebm-thumbs button { padding: 0 0 .2rem; border: 2px solid transparent; border-radius: 10px;
    background: none; cursor: pointer; color: inherit; font-size: .72rem; min-width: 0; }
.hebm-thumbs button[aria-pressed=true] { border-color: var(--color-accent); }
.hebm-thumbs button:focus-visible { outline: 2px solid var(--color-accent); }
.hebm-thumbs img { width: 100%; aspect-ratio: 1; display: block; border-radius: 8px; }
.hebm-thumbs span { display: block; overflow: hidden; text-overflow: ellipsis;
    white-space: nowrap; }
.hebm-drop { display: block; padding: .8rem; text-align: center; cursor: pointer;
    border: 1px dashed var(--border-color-primary); border-radius: 8px; font-weight: 600; }
.hebm-drop small { display: block; font-weight: 400; color: var(--body-text-color-subdued); }
.hebm-drop input { position: absolute; opacity: 0; width: 1px; height: 1px; }
.hebm-drop:focus-within, .hebm-drop:hover { background: var(--background-fill-secondary); }
.hebm-samples { display: flex; gap: .5rem; margin: .6rem 0 0; align-items: center;
    font-size: .8rem; color: var(--body-text-color-subdued); flex-wrap: wrap; }
.hebm-samples p { flex: 0 0 100%; margin: 0; }
.hebm-samples button { padding: 0; border: 2px solid transparent; border-radius: 8px;
    background: none; cursor: pointer; }
.hebm-samples button:is(:hover, :focus-visible) { border-color: var(--color-accent); }
.hebm-samples img { height: 52px; display: block; border-radius: 6px; }
@media (max-width: 760px) {
    .gradio-container { overflow: clip !important; }  /* what is hidden does not stick */
    #hebm-page { flex-direction: column; flex-wrap: nowrap; align-items: stretch; }
    .hebm-head p { display: none; }
    #hebm-stage, #hebm-view, #hebm-seen, #hebm-about { display: contents; }
    #hebm-line { order: 1; position: sticky; top: 0; z-index: 51; padding-top: 4px;
        background: var(--body-background-fill); }
    #hebm-images { order: 2; position: sticky; top: 46px; z-index: 50;
        padding-bottom: 6px !important; background: var(--body-background-fill) !important; }
    #hebm-next { order: 3; flex-wrap: nowrap; gap: 8px; }
    #hebm-next button { min-width: 0 !important; padding: 6px; font-size: .85rem; }
    #hebm-controls .tab-container button { padding: 0 5px !important; font-size: .85rem; }
    #hebm-controls { order: 4; } #hebm-facts { order: 5; }
    #hebm-lines { order: 6; }
    #hebm-controls [role=tablist] { scroll-margin-top: 44vh; }
    .hebm-big > div { max-width: 30vh; }
    .hebm-big figcaption { margin: 0; font-size: .75rem; }
    .hebm-thumbs { display: flex; overflow-x: auto; margin-top: .25rem; gap: .25rem; }
    .hebm-thumbs button { flex: 0 0 44px; padding: 0; }
    .hebm-thumbs span { display: none; }
    label.hebm-fold { display: block !important; text-align: center; padding: .5rem;
        cursor: pointer; border-radius: 8px; border: 1px solid var(--border-color-primary); }
    input.hebm-fold { display: block !important; position: absolute; opacity: 0; }
    input.hebm-fold:focus-visible + label { outline: 2px solid var(--color-accent); }
    input.hebm-fold:not(:checked) ~ .hebm-chart { display: none; }
}
"""
